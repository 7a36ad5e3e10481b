// Attention on the GPU, the gradients of keys and values: tiles of queries and of the output's gradient, from all heads
// that share the keys, pass by a tile of keys and values. Products have keys as rows: they are the left operands of
// the sums that follow as they lie.
#pragma once

#include "attention/attention_backward_kernels.cuh"

namespace fastssl::cuda {

// The queries of this lane's two columns of a column tile.
struct StatisticsPair {
  float lse[2], delta[2];
};

__device__ __forceinline__ StatisticsPair statistics_of_columns(const unsigned char* statistics, int column_tile) {
  const uint4 pair = words_at(statistics)[4 * column_tile + lane_of_warp() % 4];
  return {{__uint_as_float(pair.x), __uint_as_float(pair.z)}, {__uint_as_float(pair.y), __uint_as_float(pair.w)}};
}

// Products of keys, as rows, and queries become weights.
template <int kRowTiles, int kQueries>
__device__ __forceinline__ void to_weights_of_keys(const ScoreRules& rules, int query, int key,
                                                   const unsigned char* statistics, Sums<kRowTiles, kQueries>& c) {
  const int lane = lane_of_warp();
  const auto each = [&](auto score) {
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const StatisticsPair pair = statistics_of_columns(statistics, n);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          c.at[r][n][e] = exp2_approx(score(c.at[r][n][e], query + 8 * n + 2 * (lane % 4) + e % 2,
                                            key + 16 * r + 8 * (e / 2) + lane / 4, pair.lse[e % 2]));
    }
  };
  if (rules.only_scale(query, kQueries, key, 16 * kRowTiles))
    each([&](float product, int, int, float lse) { return fmaf(product, rules.scale, -lse); });
  else
    each([&](float product, int q, int k, float lse) { return rules.score(product, q, k) - lse; });
}

// P and dO V^T become what dV and dK are products of: M * P and dS, but for dropout's factor.
__device__ __forceinline__ void to_gradient(float& weight, float& gradient, bool kept, float delta) {
  gradient = weight * ((kept ? gradient : 0.0f) - delta);
  weight = kept ? weight : 0.0f;
}

// The same for all that a warp has. `query`, `key`: those of column 0 and row 0.
template <int kRowTiles, int kQueries>
__device__ __forceinline__ void to_gradients(const Dropout& dropout, PhiloxKey seed, int query, int key, int head,
                                             int sequence, const unsigned char* statistics,
                                             Sums<kRowTiles, kQueries>& weights, Sums<kRowTiles, kQueries>& gradients) {
  const auto finish = [&](int r, int n, int e, bool kept, float delta) {
    to_gradient(weights.at[r][n][e], gradients.at[r][n][e], kept, delta);
  };
  if (dropout.threshold) {
    for_dropout_words_of_keys<kRowTiles, kQueries>(
        seed, query, key, head, sequence, [&](uint32_t word, int r, int n, int e) {
          const StatisticsPair pair = statistics_of_columns(statistics, n);
          finish(r, n, e, (word & 0xffffu) >= dropout.threshold, pair.delta[0]);
          finish(r, n, e + 1, (word >> 16) >= dropout.threshold, pair.delta[1]);
        });
    return;
  }
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
    const StatisticsPair pair = statistics_of_columns(statistics, n);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int e = 0; e < 4; ++e) finish(r, n, e, true, pair.delta[e % 2]);
  }
}

// dK = scale dS^T Q and dV = (M * P)^T dO.
template <class T, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_grad_kv(const AttentionGradArguments a) {
  using Shape = AttentionGradShape<kWidth>;
  using Queries = typename Shape::Passing;
  constexpr int kRowTiles = Shape::kRowTiles, kQueries = Shape::kPassing, kAtOnce = Shape::kQueriesAtOnce;
  const Place place = place_of<Shape::kKept>(a, a.keys, blockIdx.x);
  if (place.begin >= place.keys) return;
  const int key_head = static_cast<int>(blockIdx.y), first_head = key_head * a.heads_per_key;
  const int end_head = first_head + a.heads_per_key;
  const Range seeing = queries_seeing(ScoreRules(a, place, first_head), place, Shape::kKept, kQueries);
  const typename Shape::Kept keys{dynamic_shared()}, values{dynamic_shared() + Shape::Kept::kBytes};
  unsigned char* stages = dynamic_shared() + 2 * Shape::Kept::kBytes;
  const auto queries_of = [&](int stage) { return Queries{stages + 2 * stage * Queries::kBytes}; };
  const auto grad_out_of = [&](int stage) { return Queries{stages + (2 * stage + 1) * Queries::kBytes}; };
  const auto statistics_of_stage = [&](int stage) {
    return stages + 4 * Queries::kBytes + stage * Shape::kStatisticsBytes;
  };
  const int64_t first_place = int64_t{first_slot<Shape::kKept>(a.queries, place.sequence)} * Shape::kKept;
  const auto load = [&](int query, int head, int stage) {
    if (head < end_head) {
      load_async<kAttentionThreads>(queries_of(stage),
                                    rows_in<const T>(a, a.q, place, place.q_row, head, query, place.queries));
      load_async<kAttentionThreads>(grad_out_of(stage),
                                    rows_in<const T>(a, a.grad_out, place, place.q_row, head, query, place.queries));
      const int chunk = static_cast<int>(threadIdx.x);
      if (chunk < kQueries / 2)  // a chunk holds the statistics of two queries
        copy_async_16(words_at(statistics_of_stage(stage)) + chunk,
                      words_at(a.statistics.data + head * a.statistics.head + first_place + query) + chunk);
    }
    copy_async_commit();
  };
  load_async<kAttentionThreads>(keys, rows_in<const T>(a, a.k, place, place.k_row, key_head, place.begin, place.keys));
  load_async<kAttentionThreads>(values,
                                rows_in<const T>(a, a.v, place, place.k_row, key_head, place.begin, place.keys));
  copy_async_commit();
  int head = seeing.begin < seeing.end ? first_head : end_head;
  load(seeing.begin, head, 0);
  copy_async_wait<1>();
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / kWarp * 16 * kRowTiles, key = place.begin + row;
  const PhiloxKey seed = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  const auto k = left_of<Shape::kHoldsMore, kRowTiles>(keys, row);
  const auto v = left_of<false, kRowTiles>(values, row);
  Sums<kRowTiles, kWidth> grad_k, grad_v;
  grad_k.clear();
  grad_v.clear();

  for (int query = seeing.begin, stage = 0; head < end_head; stage ^= 1) {
    const bool last = query + kQueries >= seeing.end;  // of this head
    const int next_query = last ? seeing.begin : query + kQueries, next_head = last ? head + 1 : head;
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    load(next_query, next_head, stage ^ 1);
#pragma unroll 1
    for (int part = 0; part < kQueries / kAtOnce; ++part) {
      const int first = query + part * kAtOnce;
      const ScoreRules rules(a, place, head);
      if (rules.hides_all(first, kAtOnce, key, 16 * kRowTiles)) continue;
      const auto queries = rows_of_tile<kAtOnce>(queries_of(stage), part);
      const auto grad_out = rows_of_tile<kAtOnce>(grad_out_of(stage), part);
      const unsigned char* statistics =
          statistics_of_stage(stage) + part * (Shape::kStatisticsBytes * kAtOnce / kQueries);
      Sums<kRowTiles, kAtOnce> weights, gradients;
      multiply_rows<T>(weights, k, queries);
      to_weights_of_keys(rules, first, key, statistics, weights);
      multiply_rows<T>(gradients, v, grad_out);
      to_gradients(a.dropout, seed, first, key, head, place.sequence, statistics, weights, gradients);
      add_product<T>(grad_v, left_of<T>(weights), grad_out);
      add_product<T>(grad_k, left_of<T>(gradients), queries);
    }
    query = next_query;
    head = next_head;
  }
  write_gradient<T>(grad_k, a.scale * a.dropout.scale, keys, row,
                    rows_in<T>(a, a.grad_k, place, place.k_row, key_head, place.begin, place.keys));
  write_gradient<T>(grad_v, a.dropout.scale, values, row,
                    rows_in<T>(a, a.grad_v, place, place.k_row, key_head, place.begin, place.keys));
}

}  // namespace fastssl::cuda
