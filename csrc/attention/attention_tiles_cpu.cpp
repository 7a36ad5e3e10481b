// Conversions and the scores of a tile. See tiles.h.
#include "attention/tiles.h"

namespace fastssl::FASTSSL_ISA {

using attention::Arguments;
using attention::Item;
using attention::Rows;
using attention::Storage;

namespace {

template <class T>
void load_rows_of(float* out, const T* in, int64_t stride, int64_t count, int64_t width) {
  const int64_t whole = width / kLanes * kLanes, padded = attention::padded(width);
  for (int64_t i = 0; i < count; ++i, in += stride, out += padded) {
    for (int64_t j = 0; j < whole; j += kLanes) store(out + j, load(in + j));
    if (whole < width) store(out + whole, load(in + whole, static_cast<int>(width - whole)));
    for (int64_t j = (width + kLanes - 1) / kLanes * kLanes; j < padded; j += kLanes) store(out + j, VecF{});
  }
}

template <class T>
void store_rows_of(T* out, int64_t stride, const float* in, int64_t count, int64_t width, float factor,
                   const float* factors) {
  const int64_t whole = width / kLanes * kLanes, padded = attention::padded(width);
  for (int64_t i = 0; i < count; ++i, in += padded, out += stride) {
    const VecF f = broadcast(factors ? factors[i] : factor);
    for (int64_t j = 0; j < whole; j += kLanes) store(out + j, load(in + j) * f);
    if (whole < width) store(out + whole, load(in + whole) * f, static_cast<int>(width - whole));
  }
}

// The bias of a tile, transposed as the scores are; (num_queries, num_keys) elements of the bias are read.
void load_bias(float* out, const Arguments& args, const Item& item, const Tile& tile, float* scratch) {
  // Rows of the scratch are kKeyTile long: wide enough for any tile, with zeros beyond the tile's keys and queries.
  const int64_t keys = attention::padded(tile.num_keys);
  const int64_t offset = args.bias.offset(item.sequence, tile.query, tile.head) + tile.key;
  load_rows(scratch, args.bias_storage, args.bias, offset, tile.num_queries, tile.num_keys);
  std::memset(scratch + tile.num_queries * keys, 0,
              sizeof(float) * static_cast<size_t>((tile.lanes - tile.num_queries) * keys));
  transpose(out, scratch, keys, tile.lanes, keys);
}

// Adds what is not the product: bias, ALiBi, and -inf where the window hides.
void add_to_scores(float* scores, const Arguments& args, const Item& item, const Tile& tile, const float* bias) {
  const int64_t shift = item.num_keys - item.num_queries;
  const float slope = args.alibi ? args.alibi[tile.head] * kLog2E : 0.0f;
  const int32_t left = static_cast<int32_t>(-args.window_left), right = static_cast<int32_t>(args.window_right);
  for (int64_t s = 0; s < tile.num_keys; ++s) {
    for (int64_t t = 0; t < tile.lanes; t += kLanes) {
      float* const x = scores + s * tile.lanes + t;
      const VecI position = (VecI)(lane_index() + static_cast<uint32_t>(tile.query + t + shift));
      const VecI distance = static_cast<int32_t>(tile.key + s) - position;
      VecF score = load(x);
      if (bias) score += finite_product(load(bias + s * tile.lanes + t), kLog2E);
      score -= slope * __builtin_convertvector(distance < 0 ? -distance : distance, VecF);
      store(x, ((distance < left) | (distance > right)) ? broadcast(-__builtin_inff()) : score);
    }
  }
}

// Whether every query of the tile sees every key of the tile.
bool all_visible(const Arguments& args, const Item& item, const Tile& tile) {
  const int64_t shift = item.num_keys - item.num_queries;
  const int64_t smallest = tile.key - (tile.query + tile.num_queries - 1 + shift);
  const int64_t largest = tile.key + tile.num_keys - 1 - (tile.query + shift);
  return smallest >= -args.window_left && largest <= args.window_right;
}

}  // namespace

void load_rows(float* out, Storage storage, const Rows& rows, int64_t offset, int64_t count, int64_t width) {
  switch (storage) {
    case Storage::float32:
      return load_rows_of(out, static_cast<const float*>(rows.data) + offset, rows.row, count, width);
    case Storage::bfloat16:
      return load_rows_of(out, static_cast<const BFloat16*>(rows.data) + offset, rows.row, count, width);
    case Storage::float16:
      return load_rows_of(out, static_cast<const Half*>(rows.data) + offset, rows.row, count, width);
  }
}

void store_rows(Storage storage, const Rows& rows, int64_t offset, const float* in, int64_t count, int64_t width,
                float factor, const float* factors) {
  switch (storage) {
    case Storage::float32:
      return store_rows_of(static_cast<float*>(rows.data) + offset, rows.row, in, count, width, factor, factors);
    case Storage::bfloat16:
      return store_rows_of(static_cast<BFloat16*>(rows.data) + offset, rows.row, in, count, width, factor, factors);
    case Storage::float16:
      return store_rows_of(static_cast<Half*>(rows.data) + offset, rows.row, in, count, width, factor, factors);
  }
}

KeyRange visible_keys(const Arguments& args, const Item& item, int64_t query, int64_t count) {
  const int64_t shift = item.num_keys - item.num_queries;
  int64_t begin = query + shift - args.window_left;
  int64_t end = query + count + shift + args.window_right;
  begin = begin < 0 ? 0 : begin / kRowGroup * kRowGroup;
  end = end > item.num_keys ? item.num_keys : end;
  return {begin, end < begin ? begin : end};
}

void want_bias(RowsAhead& ahead, const Arguments& args, const Item& item, int64_t query, int64_t count, int64_t head) {
  const KeyRange keys = visible_keys(args, item, query, count);
  const auto want = [&](Storage storage, const Rows& rows) {
    if (!rows.data) return;
    ahead.add(storage, rows, rows.offset(item.sequence, query, head) + keys.begin, count, keys.end - keys.begin);
  };
  want(args.bias_storage, args.bias);
  want(Storage::float32, args.grad_bias);
}

void compute_scores(RowsAhead& ahead, float* scores, const Arguments& args, const Item& item, const Tile& tile,
                    const Matrix& keys, const float* queries_transposed, float* bias_scratch) {
  product({.c = scores,
           .ldc = tile.lanes,
           .a = keys.data,
           .lda = keys.ld,
           .b = queries_transposed,
           .ldb = tile.lanes,
           .rows = tile.num_keys,
           .columns = tile.lanes,
           .depth = args.width,
           .factor = args.scale * kLog2E},
          ahead);
  const float* bias = nullptr;
  if (args.bias.data && args.bias_storage == Storage::float32 && whole_squares(tile)) {
    const Matrix rows = in_place(args.bias, args.bias.offset(item.sequence, tile.query, tile.head) + tile.key);
    transpose_add(scores, tile.lanes, rows.data, rows.ld, tile.lanes, tile.num_keys, kLog2E);
  } else if (args.bias.data) {
    float* const transposed = bias_scratch + attention::kQueryTile * attention::kKeyTile;
    load_bias(transposed, args, item, tile, bias_scratch);
    bias = transposed;
  }
  if (bias || args.alibi || !all_visible(args, item, tile)) add_to_scores(scores, args, item, tile, bias);
  for (int64_t i = tile.num_keys * tile.lanes; i % (kRowGroup * tile.lanes) != 0; i += kLanes)
    store(scores + i, broadcast(-__builtin_inff()));
}

}  // namespace fastssl::FASTSSL_ISA
