// What the forward and the backward share: rows in and out of fp32 tiles, the scores of a tile.
//
// A tile of scores is held transposed, keys as rows and queries as lanes. The softmax then runs down the columns, with
// no reduction across lanes; one Philox call decides eight rows of one vector; and keys and values are never
// transposed.
#pragma once

#include "attention/attention.h"
#include "common/philox.h"
#include "common/product.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;
inline constexpr int64_t kRowGroup = 8;  // rows that one Philox call decides

// Rows of tensors that will be wanted soon, which the products ask the memory for.
class RowsAhead : public Ahead {
 public:
  // Begins anew with rows of `width` elements that will be asked for in the course of `multiplications`.
  void begin(attention::Storage storage, int64_t width, int64_t multiplications) {
    element_ = size_of(storage);
    Ahead::begin(width * element_, multiplications);
  }
  // Wants rows, to read or to write; what is past the capacity is not fetched ahead.
  void add(const attention::Rows& rows, int64_t offset, int64_t count) {
    const char* row = static_cast<const char*>(rows.data) + offset * element_;
    for (; count > 0 && want(row); --count) row += rows.row * element_;
  }
  // Wants `columns` elements of each of `count` rows of another storage, in pieces as long as the other rows are.
  void add(attention::Storage storage, const attention::Rows& rows, int64_t offset, int64_t count, int64_t columns) {
    const int64_t element = size_of(storage);
    const char* row = static_cast<const char*>(rows.data) + offset * element;
    for (; count > 0; --count, row += rows.row * element)
      for (int64_t byte = 0; byte < columns * element && want(row + byte); byte += row_bytes()) continue;
  }

 private:
  static int64_t size_of(attention::Storage storage) {
    return storage == attention::Storage::float32 ? 4 : 2;
  }

  int64_t element_ = 4;
};

// Whether fp32 products can read and write the rows of q, k, v and their gradients where they are.
FASTSSL_INLINE bool usable_in_place(const attention::Arguments& args) {
  return args.storage == attention::Storage::float32 && args.width % attention::kPadding == 0;
}
FASTSSL_INLINE Matrix in_place(const attention::Rows& rows, int64_t offset) {
  return {static_cast<float*>(rows.data) + offset, rows.row};
}
// Rows read once or twice are best left where they are. Rows read more often are copied together: their distance maps
// them onto few sets of the caches.
FASTSSL_INLINE bool read_in_place(const attention::Arguments& args, int64_t num_queries) {
  return usable_in_place(args) && num_queries * args.heads_per_key <= 2 * attention::kQueryTile;
}

// ---- implemented in attention_tiles_cpu.cpp ----

// Widens rows to fp32 and pads them with zeros to `padded(width)` columns, which is also the distance of the rows.
void load_rows(float* out, attention::Storage storage, const attention::Rows& rows, int64_t offset, int64_t count,
               int64_t width);
// Narrows factor * row (or factors[i] * row i, where given) to the storage type.
void store_rows(attention::Storage storage, const attention::Rows& rows, int64_t offset, const float* in, int64_t count,
                int64_t width, float factor, const float* factors);
// One tile of scores.
struct Tile {
  int64_t query, num_queries;  // first query inside the sequence, how many
  int64_t key, num_keys;       // first key (a multiple of 8), how many
  int64_t lanes;               // num_queries padded: the distance of the tile's rows
  int64_t head;                // query head
};

// Whether a tile needs no padding, so that a bias or its gradient can be transposed from and to where it is.
FASTSSL_INLINE bool whole_squares(const Tile& tile) {
  return tile.num_queries == tile.lanes && tile.num_keys % attention::kPadding == 0;
}

// Queries a tile. Of a tile on the diagonal of a causal mask half is wasted, which shows where there are few others.
FASTSSL_INLINE int64_t query_tile(const attention::Arguments& args, const attention::Item& item) {
  const bool half = args.window_right < attention::kQueryTile && item.num_keys <= 8 * attention::kQueryTile;
  return half ? attention::kQueryTile / 2 : attention::kQueryTile;
}

// The keys [begin, end) that some query of [query, query + count) sees; begin is a multiple of 8.
struct KeyRange {
  int64_t begin, end;
};
KeyRange visible_keys(const attention::Arguments& args, const attention::Item& item, int64_t query, int64_t count);

// Wants the bias, and its gradient where it is added to, of queries [query, query + count) of a head.
void want_bias(RowsAhead& ahead, const attention::Arguments& args, const attention::Item& item, int64_t query,
               int64_t count, int64_t head);

// scores (keys, queries) = log2(e) (scale k q^T + bias + alibi), -inf where hidden, in units of powers of two. Rows are
// filled up to a multiple of kRowGroup with -inf. bias_scratch holds kQueryTile x kKeyTile floats.
void compute_scores(RowsAhead& ahead, float* scores, const attention::Arguments& args, const attention::Item& item,
                    const Tile& tile, const Matrix& keys, const float* queries_transposed, float* bias_scratch);

// ---- in line ----

// 2^x for x <= 128, within one unit in the last place; exactly 0 for x < -127 and -inf, NaN for NaN.
FASTSSL_INLINE VecF exp2(VecF x) {
  constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 + bias: the sum's low bits are the biased exponent
  x = maximum(broadcast(-127.0f), x);             // in this order, so that NaN passes
  const VecF shifted = x + kRound;
  const VecF r = x - (shifted - kRound);
  VecF p = broadcast(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184374e-3f;
  p = p * r + 5.5503325e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
  return p * as_float(as_bits(shifted) << 23);
}

// The random words of keys [key, key + 8) for the queries of one vector.
FASTSSL_INLINE PhiloxWords dropout_words(const attention::Arguments& args, const attention::Item& item,
                                         const Tile& tile, int64_t key, int64_t query) {
  return philox(broadcast(static_cast<uint32_t>(key / kRowGroup)), lane_index() + static_cast<uint32_t>(query),
                broadcast(static_cast<uint32_t>(tile.head)), broadcast(static_cast<uint32_t>(item.sequence)),
                args.dropout.key_0, args.dropout.key_1);
}

// x where row `row` of a group is kept, else zero.
FASTSSL_INLINE VecF keep(VecF x, const PhiloxWords& words, int row, uint32_t threshold) {
  const VecU word = words.w[row / 2];
  return row % 2 == 0 ? ((word & 0xffffu) >= threshold ? x : VecF{}) : (word >= (threshold << 16) ? x : VecF{});
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
