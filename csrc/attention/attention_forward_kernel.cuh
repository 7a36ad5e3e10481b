// Attention on the GPU, forward: tiles of keys and values pass by a tile of queries (FlashAttention-2).
#pragma once

#include "attention/attention_kernels.cuh"

namespace fastssl::cuda {

// kRowTiles x 16 queries a warp: more of them share what is read of keys and values, and need more registers.
template <int kWidth, int kRowTiles>
struct AttentionForwardShape {
  static constexpr int kQueries = kAttentionWarps * kRowTiles * 16, kKeys = 64;
  using Queries = Tile<kQueries, kWidth>;
  using Keys = Tile<kKeys, kWidth>;
  static constexpr int kSharedBytes = Queries::kBytes + 4 * Keys::kBytes;
};

// Products of queries, as rows, and keys become scores, or stay what these are a positive multiple of: returns the
// factor.
template <int kRowTiles, int kKeys>
__device__ __forceinline__ float to_scores(const ScoreRules& rules, int query, int key, Sums<kRowTiles, kKeys>& c) {
  if (rules.only_scale(query, 16 * kRowTiles, key, kKeys) && rules.scale > 0.0f) return rules.scale;
  const int lane = lane_of_warp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        c.at[r][n][e] =
            rules.score(c.at[r][n][e], query + 16 * r + 8 * (e / 2) + lane / 4, key + 8 * n + 2 * (lane % 4) + e % 2);
  return 1.0f;
}

// The softmax of rows over the keys so far, of rows lane / 4 and lane / 4 + 8 of each row tile. `sum` is of this lane's
// keys alone until the end.
template <int kRowTiles>
struct RunningSoftmax {
  float maximum[kRowTiles][2], sum[kRowTiles][2];

  __device__ RunningSoftmax() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) maximum[r][half] = -INFINITY, sum[r][half] = 0.0f;
  }

  // Scores times `factor`, which is positive, become weights relative to the maximum so far; what was summed with
  // earlier weights follows by `correction`.
  template <int kKeys>
  __device__ __forceinline__ void weigh(Sums<kRowTiles, kKeys>& c, float factor, float (&correction)[kRowTiles][2]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
          largest = fmaxf(largest, fmaxf(c.at[r][n][2 * half], c.at[r][n][2 * half + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, 2));
        largest = fmaxf(maximum[r][half], largest * factor);
        const float subtracted = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet: weights of 0, not NaN
        correction[r][half] = exp2_approx(maximum[r][half] - subtracted);
        maximum[r][half] = largest;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            c.at[r][n][e] = exp2_approx(fmaf(c.at[r][n][e], factor, -subtracted));
            total += c.at[r][n][e];
          }
        sum[r][half] = fmaf(sum[r][half], correction[r][half], total);
      }
  }

  // Ends the sums, and returns what the output is to be multiplied with.
  __device__ __forceinline__ float output_factor(int r, int half, float scale) {
    float& total = sum[r][half];
    total += __shfl_xor_sync(kWholeWarp, total, 1);
    total += __shfl_xor_sync(kWholeWarp, total, 2);
    return total == 0.0f ? 0.0f : scale / total;
  }

  // The natural logarithm of an ended sum.
  __device__ __forceinline__ float lse(int r, int half) const {
    return sum[r][half] == 0.0f ? -INFINITY : maximum[r][half] * kLn2 + logf(sum[r][half]);
  }
};

// Multiplies the rows lane / 4 and lane / 4 + 8 of each row tile.
template <int kRowTiles, int kColumns>
__device__ __forceinline__ void multiply_rows_by(Sums<kRowTiles, kColumns>& c, const float (&factors)[kRowTiles][2]) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) c.at[r][n][e] *= factors[r][e / 2];
}

// Divides by the sums and writes the output and lse of this warp's rows; `tile` is for its rows alone.
template <class T, int kRowTiles, int kRows, int kWidth>
__device__ __forceinline__ void finish_rows(const AttentionArguments& a, const Place& place, int head,
                                            RunningSoftmax<kRowTiles>& softmax, Sums<kRowTiles, kWidth>& out,
                                            const Tile<kRows, kWidth>& tile, int row) {
  const int lane = lane_of_warp();
  float factors[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factors[r][half] = softmax.output_factor(r, half, a.dropout.scale);
      const int query = place.begin + row + 16 * r + 8 * half + lane / 4;
      if (lane % 4 == 0 && query < place.queries) a.lse[statistics_of(a, place, head) + query] = softmax.lse(r, half);
    }
  multiply_rows_by(out, factors);
  put_sums<T>(out, tile, row);
  store_rows<16 * kRowTiles>(tile, row, rows_in<T>(a, a.out, place, place.q_row, head, place.begin, place.queries));
}

template <class T, int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward(const AttentionArguments a) {
  using Shape = AttentionForwardShape<kWidth, kRowTiles>;
  using Keys = typename Shape::Keys;
  // Late queries see more keys under a causal mask: they go first.
  const Place place = place_of<Shape::kQueries>(a, a.queries, gridDim.x - 1 - blockIdx.x);
  if (place.begin >= place.queries) return;
  const int head = static_cast<int>(blockIdx.y), key_head = head / a.heads_per_key;
  const ScoreRules rules(a, place, head);
  const Range seen = keys_seen(rules, place, Shape::kQueries, Shape::kKeys);
  const typename Shape::Queries queries{dynamic_shared()};
  unsigned char* stages = dynamic_shared() + Shape::Queries::kBytes;
  const auto keys_of = [&](int stage) { return Keys{stages + 2 * stage * Keys::kBytes}; };
  const auto values_of = [&](int stage) { return Keys{stages + (2 * stage + 1) * Keys::kBytes}; };
  const auto load = [&](int key, int stage) {
    if (key < seen.end) {
      load_async<kAttentionThreads>(keys_of(stage),
                                    rows_in<const T>(a, a.k, place, place.k_row, key_head, key, place.keys));
      load_async<kAttentionThreads>(values_of(stage),
                                    rows_in<const T>(a, a.v, place, place.k_row, key_head, key, place.keys));
    }
    copy_async_commit();
  };
  load_async<kAttentionThreads>(queries,
                                rows_in<const T>(a, a.q, place, place.q_row, head, place.begin, place.queries));
  copy_async_commit();
  load(seen.begin, 0);
  copy_async_wait<1>();
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / kWarp * 16 * kRowTiles, query = place.begin + row;
  const Left<kRowTiles, kWidth> q = left_of<kRowTiles>(queries, row);
  const PhiloxKey seed = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  RunningSoftmax<kRowTiles> softmax;
  Sums<kRowTiles, kWidth> out;
  out.clear();

  for (int key = seen.begin, stage = 0; key < seen.end; key += Shape::kKeys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    load(key + Shape::kKeys, stage ^ 1);
    Sums<kRowTiles, Shape::kKeys> scores;
    multiply_rows<T>(scores, q, keys_of(stage));
    const float factor = to_scores(rules, query, key, scores);
    float correction[kRowTiles][2];
    softmax.weigh(scores, factor, correction);
    multiply_rows_by(out, correction);
    if (a.dropout.threshold)
      for_dropout_words<kRowTiles, Shape::kKeys>(
          seed, query, key, head, place.sequence, [&](uint32_t word, int r, int n, int e) {
            drop_pair(word, a.dropout.threshold, 1.0f, scores.at[r][n][e], scores.at[r][n][e + 1]);
          });
    add_product<T>(out, left_of<T>(scores), values_of(stage));
  }
  finish_rows<T>(a, place, head, softmax, out, queries, row);
}

}  // namespace fastssl::cuda
