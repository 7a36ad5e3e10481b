// Attention on the GPU, the gradient of the queries: tiles of keys and values pass by a tile of queries.
#pragma once

#include "attention/attention_backward_kernels.cuh"

namespace fastssl::cuda {

template <class T>
__device__ __forceinline__ float product_of_chunks(const uint4& a, const uint4& b) {
  float x[kVector], y[kVector], sum = 0.0f;
  widen(Packed<T>{a}, x);
  widen(Packed<T>{b}, y);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum = fmaf(x[i], y[i], sum);
  return sum;
}

// delta and lse in units of ln 2 of the queries of a warp, those of rows lane / 4 and lane / 4 + 8 of each row tile.
// Where a query sees nothing, lse is infinite, so that its weights are zero.
template <int kRowTiles>
struct StatisticsOfRows {
  float lse[kRowTiles][2], delta[kRowTiles][2];
};

// delta = rowsum(dO * O) - dlse, divided by what dropout scales by: that comes last. The first `places` are also
// written for the kernel that follows. The tiles begin at place.begin, as `to` does; `row` is the warp's first in them.
template <class T, int kRowTiles, class Rows>
__device__ __forceinline__ StatisticsOfRows<kRowTiles> statistics_of_rows(const AttentionGradArguments& a,
                                                                          const Place& place, int head, const Rows& out,
                                                                          const Rows& grad_out, int row, float2* to,
                                                                          int places) {
  const int64_t begin = statistics_of(a, place, head) + place.begin;
  const int member = lane_of_warp() % 4;
  StatisticsOfRows<kRowTiles> statistics;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = row + 16 * r + 8 * half + lane_of_warp() / 4;
      const bool exists = place.begin + query < place.queries;
      const int64_t at = begin + (exists ? query : 0);
      const float lse = a.lse[at], grad_lse = a.grad_lse ? a.grad_lse[at] : 0.0f;
      float sum = 0.0f;
#pragma unroll
      for (int chunk = 0; chunk < Rows::kChunks; chunk += 4)
        sum += product_of_chunks<T>(*out.at(query, chunk + member), *grad_out.at(query, chunk + member));
      sum += __shfl_xor_sync(kWholeWarp, sum, 1);
      sum += __shfl_xor_sync(kWholeWarp, sum, 2);
      statistics.delta[r][half] = exists ? (sum - grad_lse) * kept_share(a.dropout) : 0.0f;
      statistics.lse[r][half] = exists && lse != -INFINITY ? lse * kLog2E : INFINITY;
      if (member == 0 && query < places) to[query] = make_float2(statistics.lse[r][half], statistics.delta[r][half]);
    }
  return statistics;
}

// Products of queries, as rows, and keys become weights.
template <int kRowTiles, int kKeys>
__device__ __forceinline__ void to_weights(const ScoreRules& rules, int query, int key,
                                           const StatisticsOfRows<kRowTiles>& statistics, Sums<kRowTiles, kKeys>& c) {
  const int lane = lane_of_warp();
  const auto each = [&](auto score) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          c.at[r][n][e] = exp2_approx(score(c.at[r][n][e], query + 16 * r + 8 * (e / 2) + lane / 4,
                                            key + 8 * n + 2 * (lane % 4) + e % 2, statistics.lse[r][e / 2]));
  };
  if (rules.only_scale(query, 16 * kRowTiles, key, kKeys))
    each([&](float product, int, int, float lse) { return fmaf(product, rules.scale, -lse); });
  else
    each([&](float product, int q, int k, float lse) { return rules.score(product, q, k) - lse; });
}

// dQ = scale dS K, and the statistics of the queries.
template <class T, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_grad_q(const AttentionGradArguments a) {
  using Shape = AttentionGradShape<kWidth>;
  using Keys = typename Shape::Passing;
  constexpr int kRowTiles = Shape::kRowTiles, kKeys = Shape::kPassing;
  // Late queries see more keys under a causal mask: they go first.
  const unsigned slot = gridDim.x - 1 - blockIdx.x;
  const Place place = place_of<Shape::kKept>(a, a.queries, slot);
  if (place.begin >= place.queries) return;
  const int head = static_cast<int>(blockIdx.y), key_head = head / a.heads_per_key;
  const ScoreRules rules(a, place, head);
  const Range seen = keys_seen(rules, place, Shape::kKept, kKeys);
  const auto kept = [&](int index) { return typename Shape::Kept{dynamic_shared() + index * Shape::Kept::kBytes}; };
  const typename Shape::Kept queries = kept(0), grad_out = kept(1), out = kept(2);
  unsigned char* stages = kept(3).memory;
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
  const auto load_kept = [&](const auto& tile, const AttentionRows& tensor) {
    load_async<kAttentionThreads>(tile,
                                  rows_in<const T>(a, tensor, place, place.q_row, head, place.begin, place.queries));
  };
  load_kept(queries, a.q);
  load_kept(grad_out, a.grad_out);
  load_kept(out, a.out);
  copy_async_commit();
  load(seen.begin, 0);
  copy_async_wait<1>();
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / kWarp * 16 * kRowTiles, query = place.begin + row;
  const StatisticsOfRows<kRowTiles> statistics = statistics_of_rows<T, kRowTiles>(
      a, place, head, out, grad_out, row, a.statistics.data + head * a.statistics.head + int64_t{slot} * Shape::kKept,
      Shape::kKept);
  const PhiloxKey seed = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  const auto q = left_of<true, kRowTiles>(queries, row);
  const auto d_out = left_of<Shape::kHoldsMore, kRowTiles>(grad_out, row);
  Sums<kRowTiles, kWidth> sums;
  sums.clear();

  for (int key = seen.begin, stage = 0; key < seen.end; key += kKeys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    load(key + kKeys, stage ^ 1);
    if (rules.hides_all(query, 16 * kRowTiles, key, kKeys)) continue;
    Sums<kRowTiles, kKeys> weights, gradients;
    multiply_rows<T>(weights, q, keys_of(stage));
    to_weights(rules, query, key, statistics, weights);
    multiply_rows<T>(gradients, d_out, values_of(stage));
    if (a.dropout.threshold)
      for_dropout_words<kRowTiles, kKeys>(
          seed, query, key, head, place.sequence, [&](uint32_t word, int r, int n, int e) {
            drop_pair(word, a.dropout.threshold, 1.0f, gradients.at[r][n][e], gradients.at[r][n][e + 1]);
          });
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          gradients.at[r][n][e] = weights.at[r][n][e] * (gradients.at[r][n][e] - statistics.delta[r][e / 2]);
    add_product<T>(sums, left_of<T>(gradients), keys_of(stage));
  }
  write_gradient<T>(sums, a.scale * a.dropout.scale, queries, row,
                    rows_in<T>(a, a.grad_q, place, place.q_row, head, place.begin, place.queries));
}

}  // namespace fastssl::cuda
