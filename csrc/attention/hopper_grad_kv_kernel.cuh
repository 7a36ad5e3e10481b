// Attention for compute capability 9.0, the gradients of keys and values: panels of queries and of the output's
// gradient, from all heads that share the keys, pass by tiles of keys and values. See attention_grad_kv_kernel.cuh for
// the same on any GPU.
#pragma once

#include "attention/attention_forward_kernel.cuh"
#include "attention/attention_grad_kv_kernel.cuh"
#include "attention/hopper_backward_kernels.cuh"

namespace fastssl::cuda {

// As many queries at a time as leave registers for the sums, which go on while the next scores are made.
template <int kWidthValue>
struct HopperGradKVShape {
  static constexpr int kWidth = kWidthValue, kGroups = 2;
  static constexpr int kKeys = 64 * kGroups, kQueries = 4096 / kWidth, kStages = 8;
  static constexpr int kTiles = kWidth == 64 ? 2 : 1;  // of keys in shared memory
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup, kRegisters = 240, kRegistersToCopy = 24;
  using KeyPanel = Panel<kKeys, kWidth>;
  using QueryPanel = Panel<kQueries, kWidth>;
  static constexpr int kTileBytes = 2 * KeyPanel::kBytes, kStageBytes = 2 * QueryPanel::kBytes;
  static constexpr int kStatisticsBytes = kQueries * static_cast<int>(sizeof(float2));
  static constexpr int kKeptBytes = kQueries * KeptBits::kRowBytes;
  static constexpr int kPanelBytes = kTiles * kTileBytes + kStages * kStageBytes;
  static constexpr int kBarriers = 2 * (kTiles + 2 * kStages);
  static constexpr int kSharedBytes = kAlignment + kPanelBytes + kStages * (kStatisticsBytes + kKeptBytes) +
                                      kBarriers * static_cast<int>(sizeof(Barrier));
  static_assert(kStatisticsTile % kQueries == 0 && kQueries <= KeptBits::kRowsBehind && kKeys == KeptBits::kKeys);
};

template <class Shape>
using HopperGradKVItem = HopperItem<QueriesOfKeys, Shape::kKeys, Shape::kQueries, Shape::kStages>;

template <class Shape>
struct HopperGradKVMemory {
  unsigned char *panels, *statistics;
  Ring<Shape::kTiles> tiles;    // of keys and values
  Ring<Shape::kStages> stages;  // of queries, dO and statistics
  Ring<Shape::kStages> kept;    // of decisions on a tile of keys, for the queries of a stage

  __device__ HopperGradKVMemory() : panels(aligned_shared()), statistics(panels + Shape::kPanelBytes) {
    auto* barriers =
        reinterpret_cast<Barrier*>(statistics + Shape::kStages * (Shape::kStatisticsBytes + Shape::kKeptBytes));
    tiles = {barriers, barriers + Shape::kTiles};
    barriers += 2 * Shape::kTiles;
    stages = {barriers, barriers + Shape::kStages};
    barriers += 2 * Shape::kStages;
    kept = {barriers, barriers + Shape::kStages};
  }
  __device__ __forceinline__ void initialise(uint32_t warps) const {
    tiles.initialise(warps);
    stages.initialise(warps);
    kept.initialise(warps);
  }
  // 0: keys, 1: values.
  __device__ __forceinline__ typename Shape::KeyPanel of_keys(unsigned fill, int which) const {
    return {panels + tiles.panel_of(fill) * Shape::kTileBytes + which * Shape::KeyPanel::kBytes};
  }
  // 0: queries, 1: dO.
  __device__ __forceinline__ typename Shape::QueryPanel of_queries(unsigned fill, int which) const {
    return {panels + Shape::kTiles * Shape::kTileBytes + stages.panel_of(fill) * Shape::kStageBytes +
            which * Shape::QueryPanel::kBytes};
  }
  __device__ __forceinline__ unsigned char* statistics_of(unsigned fill) const {
    return statistics + stages.panel_of(fill) * Shape::kStatisticsBytes;
  }
  __device__ __forceinline__ unsigned char* kept_of(unsigned fill) const {
    return statistics + Shape::kStages * Shape::kStatisticsBytes + kept.panel_of(fill) * Shape::kKeptBytes;
  }
};

template <class Shape, Dropping kDropping>
__device__ __forceinline__ void fill_rings(const HopperGradArguments& a, const HopperGradKVMemory<Shape>& memory) {
  using Item = HopperGradKVItem<Shape>;
  prefetch(a.q_map);
  prefetch(a.k_map);
  prefetch(a.v_map);
  prefetch(a.grad_out_map);
  unsigned key_fill = 0, query_fill = 0, kept_fill = 0;
  const auto keys = [&](const Item& item, int begin) {
    Barrier& full = memory.tiles.begin_fill(key_fill, Shape::kTileBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_keys(key_fill, which), map, full, item.place.k_row + begin, item.head,
                 sequence_in_map(a.keys, item.place));
    };
    copy(a.k_map, 0);
    copy(a.v_map, 1);
    ++key_fill;
  };
  const auto queries = [&](const Item& item, int query, int round) {
    const int head = item.head * a.heads_per_key + round;
    Barrier& full = memory.stages.begin_fill(query_fill, Shape::kStageBytes + Shape::kStatisticsBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_queries(query_fill, which), map, full, item.place.q_row + query, head,
                 sequence_in_map(a.queries, item.place));
    };
    copy(a.q_map, 0);
    copy(a.grad_out_map, 1);
    copy_bytes(memory.statistics_of(query_fill), statistics_in_tiles(a, item.place, head) + query,
               Shape::kStatisticsBytes, full);
    ++query_fill;
  };
  const auto kept = [&](const Item& item, int begin, int query, int round) {
    if constexpr (kDropping == Dropping::kept) {
      const int head = item.head * a.heads_per_key + round;
      Barrier& full = memory.kept.begin_fill(kept_fill, Shape::kKeptBytes);
      copy_bytes(memory.kept_of(kept_fill), a.kept.of(item.place, head, query, begin), Shape::kKeptBytes, full);
      ++kept_fill;
    }
  };
  for_copies<Item>(a, a.heads / a.heads_per_key, a.heads_per_key, Shape::kKeys, Shape::kQueries, keys, queries, kept);
}

// As to_gradients, by the decisions of the queries on a tile of keys, in which `row` is the warp's first.
template <int kQueries>
__device__ __forceinline__ void to_gradients(const unsigned char* kept, int row, const unsigned char* statistics,
                                             Sums<1, kQueries>& weights, Sums<1, kQueries>& gradients) {
  const int lane = lane_of_warp();
  const auto* words = reinterpret_cast<const uint32_t*>(kept) + lane / 8;
  // The bit of the key of row + lane / 4; that of the key eight rows further on is the next but one.
  const int first = row / 8 * 2 + lane / 4 % 2;
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
    const StatisticsPair pair = statistics_of_columns(statistics, n);
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const uint32_t bits = words[(8 * n + lane % 4 * 2 + odd) * KeptBits::kWords] >> first;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        to_gradient(weights.at[0][n][2 * half + odd], gradients.at[0][n][2 * half + odd], bits >> 2 * half & 1,
                    pair.delta[odd]);
    }
  }
}

// A warpgroup's part of a tile: 64 keys and the queries that see the tile. `row`: the warp's first in the tile.
template <class T, class Shape, Dropping kDropping>
__device__ __forceinline__ void grad_of_keys(const HopperGradArguments& a, const HopperGradKVMemory<Shape>& memory,
                                             const Turns<Shape::kGroups, 1>& turns, const Place& place, int key_head,
                                             int group, int row, PhiloxKey seed, unsigned key_fill, Range seen,
                                             unsigned first_fill, unsigned& kept_fill, bool gives_back) {
  constexpr int kQueries = Shape::kQueries;
  const auto keys = memory.of_keys(key_fill, 0), values = memory.of_keys(key_fill, 1);
  const int key = place.begin + row;
  memory.tiles.wait(key_fill);
  Sums<1, Shape::kWidth> of_keys, of_values;
  Left<1, kQueries> narrowed_weights, narrowed_gradients;
  if (seen.begin >= seen.end) {
    of_keys.clear();
    of_values.clear();
  }
  unsigned fill = first_fill;
#pragma unroll 1
  for (int head = key_head * a.heads_per_key; head < (key_head + 1) * a.heads_per_key; ++head) {
    const ScoreRules rules(a, place, head);
#pragma unroll 1
    for (int query = seen.begin; query < seen.end; query += kQueries, ++fill) {
      const auto queries = memory.of_queries(fill, 0), grad_out = memory.of_queries(fill, 1);
      const unsigned char* statistics = memory.statistics_of(fill);
      memory.stages.wait(fill);
      if (a.queries.offsets && query + kQueries > place.queries) {  // what follows belongs to another sequence
        clear_rows(queries, place.queries - query, 1 + Shape::kGroups + group);
        clear_rows(grad_out, place.queries - query, 1 + Shape::kGroups + group);
      }
      Sums<1, kQueries> weights, gradients;
      turns.begin();
      fence_products();
      multiply_rows_async<T>(weights, keys, 64 * group, queries);
      commit_products();
      multiply_rows_async<T>(gradients, values, 64 * group, grad_out);
      commit_products();
      turns.end();
      wait_for_products<1>();  // also for the sums with the queries before
      take(weights);
      if (gives_back && fill > first_fill) memory.stages.give_back(fill - 1);
      to_weights_of_keys(rules, query, key, statistics, weights);
      wait_for_products<0>();
      take(gradients);
      if constexpr (kDropping == Dropping::kept) {
        memory.kept.wait(kept_fill);
        to_gradients(memory.kept_of(kept_fill), row, statistics, weights, gradients);
        memory.kept.give_back(kept_fill++);
      } else {
        to_gradients(kDropping == Dropping::drawn ? a.dropout : Dropout{}, seed, query, key, head, place.sequence,
                     statistics, weights, gradients);
      }
      narrowed_weights = left_of<T>(weights);
      narrowed_gradients = left_of<T>(gradients);
      fence_products();
      add_product_async<T>(of_values, narrowed_weights, grad_out, fill > first_fill);
      add_product_async<T>(of_keys, narrowed_gradients, queries, fill > first_fill);
      commit_products();
    }
  }
  wait_for_products<0>();
  take(of_keys);
  take(of_values);
  if (gives_back && fill > first_fill) memory.stages.give_back(fill - 1);
  meet(1 + Shape::kGroups + group, kWarpgroup);  // none of its warps multiplies the keys and values any more
  const auto to = [&](const AttentionRows& tensor) {
    return rows_in<T>(a, tensor, place, place.k_row, key_head, place.begin, place.keys);
  };
  write_gradient<T>(of_keys, a.scale * a.dropout.scale, keys, row, to(a.grad_k));
  write_gradient<T>(of_values, a.dropout.scale, values, row, to(a.grad_v));
}

template <class T, class Shape, Dropping kDropping>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_grad_kv_hopper(const __grid_constant__ HopperGradArguments a) {
  using Item = HopperGradKVItem<Shape>;
  const HopperGradKVMemory<Shape> memory;
  const auto multiply = [&](const Turns<Shape::kGroups, 1>& turns, int row) {
    const PhiloxKey seed = kDropping == Dropping::drawn ? philox_key(a.dropout) : PhiloxKey{};
    unsigned key_fill = 0, kept_fill = 0;
    const auto tile = [&](const Item& item, const Place& place, Range seen, unsigned fill, bool gives_back) {
      grad_of_keys<T, Shape, kDropping>(a, memory, turns, place, item.head, turns.group, row, seed, key_fill, seen,
                                        fill, kept_fill, gives_back);
      memory.tiles.give_back(key_fill++);
    };
    for_tiles<Item>(a, a.heads / a.heads_per_key, a.heads_per_key, Shape::kKeys, tile,
                    [&](unsigned fill) { memory.stages.give_back(fill); });
  };
  in_roles<Shape>(memory, [&] { fill_rings<Shape, kDropping>(a, memory); }, multiply);
}

}  // namespace fastssl::cuda
