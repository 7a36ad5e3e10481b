// Attention backward: one key head of one sequence owns its dK, dV and every dQ that belongs to them.
//
//   P = 2^(scores - lse),  dP = dropout(dO V^T),  dS = P (dP - rowsum(dO O) + dlse)
//   dV = dropout(P)^T dO,  dK = scale dS^T Q,  dQ = scale dS K,  dBias = dS
#include "attention/tiles.h"

namespace fastssl::FASTSSL_ISA {

using attention::Arguments;
using attention::Item;
using attention::kKeyTile;
using attention::kQueryTile;
using attention::Rows;

namespace {

// A worker's memory, every array aligned to the widest vector.
struct Scratch {
  float *keys, *values, *grad_keys, *grad_values;  // (S, padded D)
  float *queries, *queries_transposed;             // (kQueryTile, padded D) and its transpose
  float *grad_out, *grad_out_transposed;           // likewise
  float* grad_queries;                             // (kQueryTile, padded D)
  float* out;                                      // (kQueryTile, padded D)
  float *scores, *grad_scores;                     // (kKeyTile, kQueryTile)
  float* bias;                                     // two tiles
  float *lse, *delta;                              // (kQueryTile): log2 of the denominator, rowsum(dO O) - dlse

  Scratch(float* memory, int64_t width, int64_t num_keys) {
    const int64_t columns = attention::padded(width), keys_size = attention::padded(num_keys) * columns;
    const int64_t queries_size = kQueryTile * columns, tile_size = kKeyTile * kQueryTile;
    keys = memory;
    values = keys + keys_size;
    grad_keys = values + keys_size;
    grad_values = grad_keys + keys_size;
    queries = grad_values + keys_size;
    queries_transposed = queries + queries_size;
    grad_out = queries_transposed + queries_size;
    grad_out_transposed = grad_out + queries_size;
    grad_queries = grad_out_transposed + queries_size;
    out = grad_queries + queries_size;
    scores = out + queries_size;
    grad_scores = scores + tile_size;
    bias = grad_scores + tile_size;
    lse = bias + 2 * tile_size;
    delta = lse + kQueryTile;
  }
};

void load_transposed(float* rows, float* transposed, const Arguments& args, const Rows& from, const Item& item,
                     const Tile& tile) {
  const int64_t columns = attention::padded(args.width);
  load_rows(rows, args.storage, from, from.offset(item.sequence, item.q_row + tile.query, tile.head), tile.num_queries,
            args.width);
  std::memset(rows + tile.num_queries * columns, 0,
              sizeof(float) * static_cast<size_t>((tile.lanes - tile.num_queries) * columns));
  transpose(transposed, rows, columns, tile.lanes, columns);
}

// Loads what belongs to the queries of a tile. Lanes beyond them, and queries that see nothing, get P = 0.
void load_queries(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  constexpr float kNothingVisible = 1e38f;
  const int64_t row = item.q_row + tile.query;
  load_transposed(s.queries, s.queries_transposed, args, args.q, item, tile);
  load_transposed(s.grad_out, s.grad_out_transposed, args, args.grad_out, item, tile);
  // Transposed, so that delta is summed as the product dO V^T is: of a query that sees one key the two are then the
  // same.
  float* const out_transposed = s.grad_queries;  // which nothing has been written to yet
  load_transposed(s.out, out_transposed, args, args.out, item, tile);
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    VecF sum{};
    for (int64_t j = 0; j < args.width; ++j)
      sum += load(out_transposed + j * tile.lanes + t) * load(s.grad_out_transposed + j * tile.lanes + t);
    store(s.delta + t, sum);
  }
  const float* const lse = static_cast<const float*>(args.lse.data) + args.lse.offset(item.sequence, row, tile.head);
  const float* const grad_lse = static_cast<const float*>(args.grad_lse.data);
  for (int64_t i = 0; i < tile.lanes; ++i) {
    s.lse[i] = kNothingVisible;
    if (i >= tile.num_queries) continue;
    if (lse[i] != -__builtin_inff()) s.lse[i] = lse[i] * kLog2E;
    if (grad_lse) s.delta[i] -= grad_lse[args.grad_lse.offset(item.sequence, row + i, tile.head)];
  }
}

// scores <- dropout(P) without its scale, grad_scores (dO V^T with it on entry) <- dS.
template <bool kDropout>
void differentiate(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  for (int64_t t = 0; t < tile.lanes; t += kLanes) {
    const VecF lse = load(s.lse + t), delta = load(s.delta + t);
    for (int64_t i = 0; i < tile.num_keys; i += kRowGroup) {
      PhiloxWords words;
      if constexpr (kDropout) words = dropout_words(args, item, tile, tile.key + i, tile.query + t);
#pragma GCC unroll 8
      for (int r = 0; r < kRowGroup; ++r) {
        float* const x = s.scores + (i + r) * tile.lanes + t;
        float* const dx = s.grad_scores + (i + r) * tile.lanes + t;
        // Of scores so large that lse is known to several units alone, no weight may come out above 1.
        const VecF p = exp2(minimum(VecF{}, load(x) - lse));  // in this order, so that NaN passes
        VecF dp = load(dx);
        if constexpr (kDropout) {
          dp = keep(dp, words, r, args.dropout.threshold);
          store(x, keep(p, words, r, args.dropout.threshold));
        } else {
          store(x, p);
        }
        store(dx, p * (dp - delta));
      }
    }
  }
}

// Adds dS to the gradient of the bias.
void add_grad_bias(const Scratch& s, const Arguments& args, const Item& item, const Tile& tile) {
  const int64_t keys = attention::padded(tile.num_keys);
  if (whole_squares(tile)) {
    const Matrix out = in_place(args.grad_bias, args.grad_bias.offset(item.sequence, tile.query, tile.head) + tile.key);
    return transpose_add(out.data, out.ld, s.grad_scores, tile.lanes, tile.num_keys, tile.lanes, 1.0f);
  }
  for (int64_t i = tile.num_keys; i < keys; ++i)
    std::memset(s.grad_scores + i * tile.lanes, 0, sizeof(float) * static_cast<size_t>(tile.lanes));
  // The transposition reads (keys, lanes) and writes rows of queries, `keys` apart.
  transpose(s.bias, s.grad_scores, tile.lanes, keys, tile.lanes);
  float* row =
      static_cast<float*>(args.grad_bias.data) + args.grad_bias.offset(item.sequence, tile.query, tile.head) + tile.key;
  for (int64_t i = 0; i < tile.num_queries; ++i, row += args.grad_bias.row)
    for (int64_t j = 0; j < tile.num_keys; j += kLanes) {
      const int n = static_cast<int>(tile.num_keys - j < kLanes ? tile.num_keys - j : kLanes);
      store(row + j, load(row + j, n) + load(s.bias + i * keys + j), n);
    }
}

// Keys, values and their gradients of an item, as the products take them.
struct KeySide {
  Matrix keys, values, grad_keys, grad_values;
  bool in_place;  // the gradients are written to the output itself
};

// `first`: this tile writes the gradients of all keys; else it adds to them.
void backward_tile(RowsAhead& ahead, const Scratch& s, const Arguments& args, const Item& item, Tile tile,
                   const KeySide& side, bool first) {
  const int64_t columns = attention::padded(args.width);
  load_queries(s, args, item, tile);
  const KeyRange visible = visible_keys(args, item, tile.query, tile.num_queries);
  if (visible.begin == visible.end)
    std::memset(s.grad_queries, 0, sizeof(float) * static_cast<size_t>(tile.num_queries * columns));
  const int64_t offset = args.grad_q.offset(item.sequence, item.q_row + tile.query, tile.head);
  const bool once = visible.end - visible.begin <= kKeyTile && visible.begin < visible.end && usable_in_place(args);
  const Matrix grad_queries = once ? in_place(args.grad_q, offset) : Matrix{s.grad_queries, columns};
  for (tile.key = visible.begin; tile.key < visible.end; tile.key += kKeyTile) {
    tile.num_keys = visible.end - tile.key < kKeyTile ? visible.end - tile.key : kKeyTile;
    const auto rows = [&](const Matrix& m) { return Matrix{m.data + tile.key * m.ld, m.ld}; };
    const Matrix values = rows(side.values), grad_values = rows(side.grad_values), grad_keys = rows(side.grad_keys);
    compute_scores(ahead, s.scores, args, item, tile, rows(side.keys), s.queries_transposed, s.bias);
    product({.c = s.grad_scores,
             .ldc = tile.lanes,
             .a = values.data,
             .lda = values.ld,
             .b = s.grad_out_transposed,
             .ldb = tile.lanes,
             .rows = tile.num_keys,
             .columns = tile.lanes,
             .depth = args.width},
            ahead);
    for (int64_t i = tile.num_keys * tile.lanes; i % (kRowGroup * tile.lanes) != 0; i += kLanes)
      store(s.grad_scores + i, VecF{});
    if (args.dropout.threshold)
      differentiate<true>(s, args, item, tile);
    else
      differentiate<false>(s, args, item, tile);
    product({.c = grad_values.data,
             .ldc = grad_values.ld,
             .a = s.scores,
             .lda = tile.lanes,
             .b = s.grad_out,
             .ldb = columns,
             .rows = tile.num_keys,
             .columns = columns,
             .depth = tile.num_queries,
             .accumulate = !first,
             .factor = side.in_place ? args.dropout.scale : 1.0f},
            ahead);
    product({.c = grad_keys.data,
             .ldc = grad_keys.ld,
             .a = s.grad_scores,
             .lda = tile.lanes,
             .b = s.queries,
             .ldb = columns,
             .rows = tile.num_keys,
             .columns = columns,
             .depth = tile.num_queries,
             .accumulate = !first,
             .factor = side.in_place ? args.scale : 1.0f},
            ahead);
    product_transposed({.c = grad_queries.data,
                        .ldc = grad_queries.ld,
                        .a = s.grad_scores,
                        .lda = tile.lanes,
                        .b = s.keys + tile.key * columns,
                        .ldb = columns,
                        .rows = tile.num_queries,
                        .columns = columns,
                        .depth = tile.num_keys,
                        .accumulate = tile.key > visible.begin,
                        .factor = once ? args.scale : 1.0f},
                       ahead);
    if (args.grad_bias.data) add_grad_bias(s, args, item, tile);
  }
  if (!once)
    store_rows(args.storage, args.grad_q, offset, s.grad_queries, tile.num_queries, args.width, args.scale, nullptr);
}

// The queries, outputs and their gradients of a tile.
void want_queries(RowsAhead& ahead, const Arguments& args, const Item& item, int64_t query, int64_t head) {
  const int64_t step = query_tile(args, item), left = item.num_queries - query, count = left < step ? left : step;
  const Rows* const wanted[] = {&args.q, &args.grad_out, &args.out};
  for (const Rows* rows : wanted) ahead.add(*rows, rows->offset(item.sequence, item.q_row + query, head), count);
  want_bias(ahead, args, item, query, count, head);
}

void want_keys(RowsAhead& ahead, const Rows& first, const Rows& second, const Item& item) {
  ahead.add(first, first.offset(item.sequence, item.k_row, item.head), item.num_keys);
  ahead.add(second, second.offset(item.sequence, item.k_row, item.head), item.num_keys);
}

// What will be wanted after a tile: its own gradients, and the queries of the next tile or all of the next item.
void look_ahead(RowsAhead& ahead, const Arguments& args, const Item& item, const Item* next, const Tile& tile) {
  const int64_t columns = attention::padded(args.width), after = tile.query + tile.num_queries;
  ahead.begin(args.storage, args.width, (2 * tile.lanes + 3 * tile.num_queries) / kLanes * item.num_keys * columns);
  ahead.add(args.grad_q, args.grad_q.offset(item.sequence, item.q_row + tile.query, tile.head), tile.num_queries);
  if (after < item.num_queries) {
    want_queries(ahead, args, item, after, tile.head);
  } else if (tile.head + 1 < (item.head + 1) * args.heads_per_key) {
    want_queries(ahead, args, item, 0, tile.head + 1);
  } else {
    if (next) {
      want_keys(ahead, args.k, args.v, *next);
      want_queries(ahead, args, *next, 0, next->head * args.heads_per_key);
    }
    want_keys(ahead, args.grad_k, args.grad_v, item);
  }
}

}  // namespace

void attention_backward(const Arguments& args, const Item& item, const Item* next, float* memory) {
  RowsAhead ahead;
  const Scratch s(memory, args.width, item.num_keys);
  const int64_t columns = attention::padded(args.width), step = query_tile(args, item);
  const int64_t key_offset = args.k.offset(item.sequence, item.k_row, item.head);
  const int64_t value_offset = args.v.offset(item.sequence, item.k_row, item.head);
  const int64_t grad_key_offset = args.grad_k.offset(item.sequence, item.k_row, item.head);
  const int64_t grad_value_offset = args.grad_v.offset(item.sequence, item.k_row, item.head);
  const bool leave_values = read_in_place(args, item.num_queries) && !args.dropout.threshold;
  load_rows(s.keys, args.storage, args.k, key_offset, item.num_keys, args.width);
  if (!leave_values) load_rows(s.values, args.storage, args.v, value_offset, item.num_keys, args.width);
  // The values bear dropout's scale, as the outputs do: of a query that sees one key, dO V^T and delta are then the
  // same.
  if (args.dropout.threshold)
    for (int64_t i = 0; i < item.num_keys * columns; i += kLanes)
      store(s.values + i, load(s.values + i) * args.dropout.scale);

  // A first tile that sees every key writes what later ones add to; an only one writes the gradients themselves.
  const KeyRange seen = visible_keys(args, item, 0, item.num_queries < step ? item.num_queries : step);
  const bool all_seen = item.num_queries > 0 && seen.begin == 0 && seen.end == item.num_keys;
  const bool in_place_gradients =
      all_seen && usable_in_place(args) && item.num_queries <= step && args.heads_per_key == 1;
  if (!all_seen) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(item.num_keys * columns);
    std::memset(s.grad_keys, 0, bytes);
    std::memset(s.grad_values, 0, bytes);
  }
  const KeySide side{{s.keys, columns},
                     leave_values ? in_place(args.v, value_offset) : Matrix{s.values, columns},
                     in_place_gradients ? in_place(args.grad_k, grad_key_offset) : Matrix{s.grad_keys, columns},
                     in_place_gradients ? in_place(args.grad_v, grad_value_offset) : Matrix{s.grad_values, columns},
                     in_place_gradients};
  for (int64_t i = 0; i < args.heads_per_key; ++i) {
    for (int64_t query = 0; query < item.num_queries; query += step) {
      const int64_t left = item.num_queries - query, count = left < step ? left : step;
      const Tile tile{query, count, 0, 0, attention::padded(count), item.head * args.heads_per_key + i};
      look_ahead(ahead, args, item, next, tile);
      backward_tile(ahead, s, args, item, tile, side, all_seen && i == 0 && query == 0);
    }
  }
  if (in_place_gradients) return;
  store_rows(args.storage, args.grad_k, grad_key_offset, s.grad_keys, item.num_keys, args.width, args.scale, nullptr);
  store_rows(args.storage, args.grad_v, grad_value_offset, s.grad_values, item.num_keys, args.width, args.dropout.scale,
             nullptr);
}

}  // namespace fastssl::FASTSSL_ISA
