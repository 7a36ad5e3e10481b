// What the kernels of attention's backward for the GPU share; attention_kernels.cuh has what the forward shares with
// them.
#pragma once

#include "attention/attention_kernels.cuh"

namespace fastssl::cuda {

// lse in units of ln 2 and delta of each query, side by side. A tile of queries has the places of its slot, all of
// them, so that whole vectors can be read; see first_slot.
struct QueryStatistics {
  float2* data;
  int64_t head;  // places a head
};

struct AttentionGradArguments : AttentionArguments {
  AttentionRows grad_out, grad_q, grad_k, grad_v;
  const float* grad_lse;  // lies as lse does, or null
  QueryStatistics statistics;
};

// A block keeps rows of its side's tensors, kRowTiles x 16 a warp, and sums for them; two of the other side pass by.
template <int kWidth>
struct AttentionGradShape {
  static constexpr int kRowTiles = kWidth <= 64 ? 2 : 1;
  static constexpr int kKept = kAttentionWarps * kRowTiles * 16, kPassing = 32;
  // Of the queries that pass by, those whose products with the keys are in registers at a time, beside all sums.
  static constexpr int kQueriesAtOnce = 16;
  static constexpr bool kHoldsMore = kWidth <= 96;  // left operands in registers: dO for dQ, the keys for dK and dV
  using Kept = Tile<kKept, kWidth>;
  using Passing = Tile<kPassing, kWidth>;
  static constexpr int kStatisticsBytes = kPassing * static_cast<int>(sizeof(float2));  // of queries that pass by
  static constexpr int kSharedBytesForQ = 3 * Kept::kBytes + 4 * Passing::kBytes;       // O is among what is kept
  static constexpr int kSharedBytesForKV = 2 * Kept::kBytes + 4 * Passing::kBytes + 2 * kStatisticsBytes;
};

// The queries that see some key of [place.begin, place.begin + count).
__device__ __forceinline__ Range queries_seeing(const ScoreRules& rules, const Place& place, int count, int tile) {
  const int64_t first = int64_t{place.begin} - rules.shift;
  const int rows = place.keys - place.begin < count ? place.keys - place.begin : count;
  return tiles_between(first - rules.window_right, first + rows + rules.window_left, place.queries, tile);
}

// As for_dropout_words, for scores with keys as rows: body(word, row tile, column tile, element) for pairs of
// neighbouring queries. A call's eight keys are the rows of an 8 x 8 matrix of the fragments; its words have them as
// columns and are transposed.
template <int kRowTiles, int kQueries, class Body>
__device__ __forceinline__ void for_dropout_words_of_keys(PhiloxKey seed, int query, int key, int head, int sequence,
                                                          Body body) {
  constexpr int kGroups = 2 * kRowTiles;
  const int lane = lane_of_warp();
#pragma unroll
  for (int first = 0; first < kQueries / 8 * kGroups; first += 4) {
    const int mine = first + lane % 4;
    const uint4 counter = make_uint4(static_cast<uint32_t>(key / 8 + mine % kGroups),
                                     static_cast<uint32_t>(query + mine / kGroups * 8 + lane / 4),
                                     static_cast<uint32_t>(head), static_cast<uint32_t>(sequence));
    const uint4 words = transpose_in_quad(philox(counter, seed));
    const uint32_t each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      body(transpose_matrix(each[i]), (first + i) % kGroups / 2, (first + i) / kGroups, (first + i) % 2 * 2);
  }
}

// Scales the sums of this warp's rows and writes them; `tile` is for its rows alone.
template <class T, int kRowTiles, int kRows, int kWidth>
__device__ __forceinline__ void write_gradient(Sums<kRowTiles, kWidth>& sums, float factor,
                                               const Tile<kRows, kWidth>& tile, int row, const RowsInMemory<T>& to) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.at[r][n][e] *= factor;
  put_sums<T>(sums, tile, row);
  store_rows<16 * kRowTiles>(tile, row, to);
}

}  // namespace fastssl::cuda
