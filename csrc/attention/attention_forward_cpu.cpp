// Attention forward: one query tile at a time, the softmax carried over key tiles.
#include "attention/tiles.h"

namespace fastssl::FASTSSL_ISA {

using attention::Arguments;
using attention::Item;
using attention::kKeyTile;
using attention::kPadding;
using attention::kQueryTile;

namespace {

// A worker's memory, every array aligned to the widest vector.
struct Scratch {
  float *keys, *values;                 // (S, padded D)
  float *queries, *queries_transposed;  // (kQueryTile, padded D) and its transpose
  float* out;                           // (kQueryTile, padded D)
  float* scores;                        // (kKeyTile, kQueryTile)
  float* bias;                          // two tiles
  float *maximum, *sum, *factor;        // (kQueryTile): running maximum and sum of a column, factor of a row of out

  Scratch(float* memory, int64_t width, int64_t num_keys) {
    const int64_t columns = attention::padded(width), keys_size = attention::padded(num_keys) * columns;
    keys = memory;
    values = keys + keys_size;
    queries = values + keys_size;
    queries_transposed = queries + kQueryTile * columns;
    out = queries_transposed + kQueryTile * columns;
    scores = out + kQueryTile * columns;
    bias = scores + kKeyTile * kQueryTile;
    maximum = bias + 2 * kKeyTile * kQueryTile;
    sum = maximum + kQueryTile;
    factor = sum + kQueryTile;
  }
};

// Raises the running maxima to those of a tile; factor gets what the sums so far are worth in the new unit.
// Returns whether some maximum rose.
bool raise_maximum(const Scratch& s, const Tile& tile) {
  VecI rose{};
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    const VecF before = load(s.maximum + t);
    VecF now = before;
    for (int64_t i = 0; i < tile.num_keys; ++i)
      now = fastssl::FASTSSL_ISA::maximum(load(s.scores + i * tile.lanes + t), now);
    rose |= now > before;
    store(s.maximum + t, now);
    // Where nothing has been visible yet the sum is zero and any finite unit will do.
    const VecF unit = now == broadcast(-__builtin_inff()) ? VecF{} : now;
    store(s.factor + t, exp2(before - unit));
  }
  for (int i = 0; i < kLanes; ++i)
    if (rose[i]) return true;
  return false;
}

// scores <- dropout(2^(scores - maximum)), without dropout's scale; sum += the column sums before dropout.
template <bool kDropout>
void exponentiate(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    const VecF highest = load(s.maximum + t);
    const VecF unit = highest == broadcast(-__builtin_inff()) ? VecF{} : highest;
    VecF sum = load(s.sum + t);
    for (int64_t i = 0; i < tile.num_keys; i += kRowGroup) {
      PhiloxWords words;
      if constexpr (kDropout) words = dropout_words(args, item, tile, tile.key + i, tile.query + t);
#pragma GCC unroll 8
      for (int r = 0; r < kRowGroup; ++r) {
        float* const x = s.scores + (i + r) * tile.lanes + t;
        VecF p = exp2(load(x) - unit);
        sum += p;
        if constexpr (kDropout) p = keep(p, words, r, args.dropout.threshold);
        store(x, p);
      }
    }
    store(s.sum + t, sum);
  }
}

void scale_rows(float* rows, const float* factor, int64_t count, int64_t columns) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < columns; j += kLanes)
      store(rows + i * columns + j, load(rows + i * columns + j) * factor[i]);
}

void load_queries(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  const int64_t columns = attention::padded(args.width);
  load_rows(s.queries, args.storage, args.q, args.q.offset(item.sequence, item.q_row + tile.query, item.head),
            tile.num_queries, args.width);
  std::memset(s.queries + tile.num_queries * columns, 0,
              sizeof(float) * static_cast<size_t>((tile.lanes - tile.num_queries) * columns));
  transpose(s.queries_transposed, s.queries, columns, tile.lanes, columns);
}

// factor <- 1 / sum, and lse = ln(sum 2^maximum).
void normalise(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  const VecF negative_infinity = broadcast(-__builtin_inff());
  float lse[kQueryTile];
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    const VecF sum = load(s.sum + t), highest = load(s.maximum + t);
    const VecI empty = sum == VecF{};  // where NaN was seen the sum is NaN
    store(s.factor + t, empty ? VecF{} : args.dropout.scale / sum);
    store(lse + t, empty ? negative_infinity : highest * kLn2 + log(sum));
  }
  const int64_t offset = args.lse.offset(item.sequence, item.q_row + tile.query, item.head);
  std::memcpy(static_cast<float*>(args.lse.data) + offset, lse, sizeof(float) * static_cast<size_t>(tile.num_queries));
}

void forward_tile(RowsAhead& ahead, const Scratch& s, const Arguments& args, const Item& item, Tile tile,
                  const Matrix& keys, int64_t first_loaded_key) {
  const int64_t columns = attention::padded(args.width);
  const int64_t offset = args.out.offset(item.sequence, item.q_row + tile.query, item.head);
  load_queries(s, args, item, tile);
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    store(s.maximum + t, broadcast(-__builtin_inff()));
    store(s.sum + t, VecF{});
  }
  const KeyRange visible = visible_keys(args, item, tile.query, tile.num_queries);
  if (visible.begin == visible.end) std::memset(s.out, 0, sizeof(float) * static_cast<size_t>(kQueryTile * columns));
  // With one tile of keys the sum is known before the product, which then writes the output itself.
  const bool once = visible.end - visible.begin <= kKeyTile && visible.begin < visible.end && usable_in_place(args);
  const Matrix out = once ? in_place(args.out, offset) : Matrix{s.out, columns};
  for (tile.key = visible.begin; tile.key < visible.end; tile.key += kKeyTile) {
    tile.num_keys = visible.end - tile.key < kKeyTile ? visible.end - tile.key : kKeyTile;
    const int64_t row = tile.key - first_loaded_key;
    compute_scores(ahead, s.scores, args, item, tile, {keys.data + row * keys.ld, keys.ld}, s.queries_transposed,
                   s.bias);
    const bool rescale = raise_maximum(s, tile) && tile.key > visible.begin;
    if (rescale) {
      for (int64_t t = 0; t < tile.lanes; t += kLanes) store(s.sum + t, load(s.sum + t) * load(s.factor + t));
      scale_rows(s.out, s.factor, tile.num_queries, columns);
    }
    if (args.dropout.threshold)
      exponentiate<true>(s, args, item, tile);
    else
      exponentiate<false>(s, args, item, tile);
    if (once) normalise(s, args, item, tile);
    product_transposed({.c = out.data,
                        .ldc = out.ld,
                        .a = s.scores,
                        .lda = tile.lanes,
                        .b = s.values + row * columns,
                        .ldb = columns,
                        .rows = tile.num_queries,
                        .columns = columns,
                        .depth = tile.num_keys,
                        .accumulate = tile.key > visible.begin,
                        .factors = once ? s.factor : nullptr},
                       ahead);
  }
  if (once) return;
  normalise(s, args, item, tile);
  store_rows(args.storage, args.out, offset, s.out, tile.num_queries, args.width, 1.0f, s.factor);
}

// What will be wanted after a tile: its own rows of `out`, the queries of the next tile, or all of the next item.
void look_ahead(RowsAhead& ahead, const Arguments& args, const Item& item, const Item* next, int64_t query,
                int64_t count) {
  const int64_t step = query_tile(args, item), after = query + count;
  ahead.begin(args.storage, args.width,
              (attention::padded(count) + count) / kLanes * item.num_keys * attention::padded(args.width));
  ahead.add(args.out, args.out.offset(item.sequence, item.q_row + query, item.head), count);
  if (after < item.query_end) {
    const int64_t left = item.query_end - after;
    ahead.add(args.q, args.q.offset(item.sequence, item.q_row + after, item.head), left < step ? left : step);
    want_bias(ahead, args, item, after, left < step ? left : step, item.head);
  } else if (next) {
    const int64_t queries = next->query_end - next->query_begin;
    const KeyRange keys = visible_keys(args, *next, next->query_begin, queries);
    const int64_t key_head = next->head / args.heads_per_key, row = next->k_row + keys.begin;
    ahead.add(args.k, args.k.offset(next->sequence, row, key_head), keys.end - keys.begin);
    ahead.add(args.v, args.v.offset(next->sequence, row, key_head), keys.end - keys.begin);
    ahead.add(args.q, args.q.offset(next->sequence, next->q_row + next->query_begin, next->head),
              queries < step ? queries : step);
    want_bias(ahead, args, *next, next->query_begin, queries < step ? queries : step, next->head);
  }
}

}  // namespace

void attention_forward(const Arguments& args, const Item& item, const Item* next, float* memory) {
  RowsAhead ahead;
  const Scratch s(memory, args.width, item.num_keys);
  const KeyRange range = visible_keys(args, item, item.query_begin, item.query_end - item.query_begin);
  const int64_t key_head = item.head / args.heads_per_key, row = item.k_row + range.begin;
  const int64_t num_keys = range.end - range.begin;
  const int64_t offset = args.k.offset(item.sequence, row, key_head);
  const bool leave = read_in_place(args, item.query_end - item.query_begin);
  const Matrix keys = leave ? in_place(args.k, offset) : Matrix{s.keys, attention::padded(args.width)};
  if (!leave) load_rows(s.keys, args.storage, args.k, offset, num_keys, args.width);
  load_rows(s.values, args.storage, args.v, args.v.offset(item.sequence, row, key_head), num_keys, args.width);
  const int64_t step = query_tile(args, item);
  for (int64_t query = item.query_begin; query < item.query_end; query += step) {
    const int64_t left = item.query_end - query, count = left < step ? left : step;
    look_ahead(ahead, args, item, next, query, count);
    forward_tile(ahead, s, args, item, {query, count, 0, 0, attention::padded(count), item.head}, keys, range.begin);
  }
}

}  // namespace fastssl::FASTSSL_ISA
