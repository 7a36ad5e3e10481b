// Attention for compute capability 9.0, the gradient of the queries: panels of keys and values pass by tiles of queries
// as in the forward. See attention_grad_q_kernel.cuh for the same on any GPU.
#pragma once

#include "attention/attention_forward_kernel.cuh"
#include "attention/attention_grad_q_kernel.cuh"
#include "attention/hopper_backward_kernels.cuh"

namespace fastssl::cuda {

template <int kWidthValue>
struct HopperGradQShape {
  static constexpr int kWidth = kWidthValue, kGroups = 2;
  static constexpr int kQueries = 64 * kGroups, kKeys = 64, kStages = kWidth == 64 ? 8 : 4;
  static constexpr int kTiles = kWidth == 64 ? 2 : 1;  // of queries in shared memory
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup, kRegisters = 240, kRegistersToCopy = 24,
                       kRegistersToAdd = 0;
  static_assert(kGroups * kRegisters + kRegistersToCopy <= (kGroups + 1) * registers_at_first(kThreads));
  using QueryPanel = Panel<kQueries, kWidth>;
  using KeyPanel = Panel<kKeys, kWidth>;
  static constexpr int kTileBytes = 3 * QueryPanel::kBytes, kStageBytes = 2 * KeyPanel::kBytes;
  static constexpr int kPanelBytes = kTiles * kTileBytes + kStages * kStageBytes;
  static constexpr int kBarriers = 2 * (kTiles + kStages);
  static constexpr int kSharedBytes = kPanelBytes + kBarriers * static_cast<int>(sizeof(Barrier));
};

template <class Shape>
using HopperGradQItem = HopperItem<KeysOfQueries, Shape::kQueries, Shape::kKeys, Shape::kStages>;

template <class Shape>
struct HopperGradQMemory {
  unsigned char* panels;
  Ring<Shape::kTiles> tiles;    // of queries, dO and O
  Ring<Shape::kStages> stages;  // of keys and values

  __device__ HopperGradQMemory() : panels(shared_panels()) {
    auto* barriers = reinterpret_cast<Barrier*>(panels + Shape::kPanelBytes);
    tiles = {barriers, barriers + Shape::kTiles};
    stages = {barriers + 2 * Shape::kTiles, barriers + 2 * Shape::kTiles + Shape::kStages};
  }
  __device__ __forceinline__ void initialise(uint32_t warps) const {
    tiles.initialise(warps);
    stages.initialise(warps);
  }
  // 0: queries, 1: dO, 2: O.
  __device__ __forceinline__ typename Shape::QueryPanel of_queries(unsigned fill, int which) const {
    return {panels + tiles.panel_of(fill) * Shape::kTileBytes + which * Shape::QueryPanel::kBytes};
  }
  // 0: keys, 1: values.
  __device__ __forceinline__ typename Shape::KeyPanel of_keys(unsigned fill, int which) const {
    return {panels + Shape::kTiles * Shape::kTileBytes + stages.panel_of(fill) * Shape::kStageBytes +
            which * Shape::KeyPanel::kBytes};
  }
};

template <class Shape>
__device__ __forceinline__ void fill_rings(const HopperGradArguments& a, const HopperGradQMemory<Shape>& memory) {
  using Item = HopperGradQItem<Shape>;
  prefetch(a.q_map);
  prefetch(a.k_map);
  prefetch(a.v_map);
  prefetch(a.out_map);
  prefetch(a.grad_out_map);
  unsigned query_fill = 0, key_fill = 0;
  const auto queries = [&](const Item& item, int begin) {
    Barrier& full = memory.tiles.begin_fill(query_fill, Shape::kTileBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_queries(query_fill, which), map, full, item.place.q_row + begin, item.head,
                 sequence_in_map(a.queries, item.place));
    };
    copy(a.q_map, 0);
    copy(a.grad_out_map, 1);
    copy(a.out_map, 2);
    ++query_fill;
  };
  const auto keys = [&](const Item& item, int key, int) {
    Barrier& full = memory.stages.begin_fill(key_fill, Shape::kStageBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_keys(key_fill, which), map, full, item.place.k_row + key, item.head / a.heads_per_key,
                 sequence_in_map(a.keys, item.place));
    };
    copy(a.k_map, 0);
    copy(a.v_map, 1);
    ++key_fill;
  };
  for_copies<Item>(a, a.heads, 1, Shape::kQueries, Shape::kKeys, queries, keys, [](const Item&, int, int, int) {});
}

// The decisions of this lane's two queries for 64 keys, those of its columns alone.
__device__ __forceinline__ void kept_of_rows(const KeptBits& bits, const Place& place, int head, int query, int key,
                                             uint32_t (&kept)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = query + 8 * half + lane_of_warp() / 4;
    const uint32_t* words = bits.of(place, head, row, key);
    kept[half] = words && row < place.queries ? words[lane_of_warp() % 4] >> key % KeptBits::kKeys / 4 : 0;
  }
}

// A warpgroup's part of a tile: 64 queries and the keys that the whole tile sees. `row`: the warp's first in the tile.
template <class T, class Shape, Dropping kDropping>
__device__ __forceinline__ void grad_of_queries(const HopperGradArguments& a, const HopperGradQMemory<Shape>& memory,
                                                const Turns<Shape::kGroups, 1>& turns, const Place& place, int head,
                                                int group, int row, PhiloxKey seed, unsigned query_fill, Range seen,
                                                unsigned first_fill, bool gives_back) {
  constexpr int kKeys = Shape::kKeys;
  const ScoreRules rules(a, place, head);
  const auto queries = memory.of_queries(query_fill, 0), grad_out = memory.of_queries(query_fill, 1),
             out = memory.of_queries(query_fill, 2);
  const int query = place.begin + row;
  memory.tiles.wait(query_fill);
  const int places = (place.queries - place.begin + kStatisticsTile - 1) / kStatisticsTile * kStatisticsTile;
  const StatisticsOfRows<1> statistics = statistics_of_rows<T, 1>(
      a, place, head, out, grad_out, row, statistics_in_tiles(a, place, head) + place.begin, places);
  // Both stay in shared memory: as operands in registers, which the loop never writes, they are overwritten in it by
  // the compiler of CUDA 13.0 (tests/cuda_check/check_cuda.py finds it).
  const auto left_queries = queries.from(64 * group), left_grad_out = grad_out.from(64 * group);
  Sums<1, Shape::kWidth> sums;
  Left<1, kKeys> narrowed;
  if (seen.begin >= seen.end) sums.clear();
  unsigned fill = first_fill;
#pragma unroll 1
  for (int key = seen.begin; key < seen.end; key += kKeys, ++fill) {
    const auto keys = memory.of_keys(fill, 0), values = memory.of_keys(fill, 1);
    memory.stages.wait(fill);
    if (a.keys.offsets && key + kKeys > place.keys) {  // what is behind the last key belongs to another sequence
      clear_rows(keys, place.keys - key, 1 + Shape::kGroups + group);
      clear_rows(values, place.keys - key, 1 + Shape::kGroups + group);
    }
    [[maybe_unused]] uint32_t kept[2];
    if constexpr (kDropping == Dropping::kept) kept_of_rows(a.kept, place, head, query, key, kept);
    Sums<1, kKeys> weights, gradients;
    turns.begin();
    fence_products();
    multiply_rows_async<T>(weights, left_queries, keys.from(0));
    commit_products();
    multiply_rows_async<T>(gradients, left_grad_out, values.from(0));
    commit_products();
    turns.end();
    wait_for_products<1>();  // also for the sums with the keys before
    take(weights);
    if (gives_back && key > seen.begin) memory.stages.give_back(fill - 1);
    to_weights(rules, query, key, statistics, weights);
    wait_for_products<0>();
    take(gradients);
    if constexpr (kDropping == Dropping::kept) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!(kept[e / 2] >> (2 * n + e % 2) & 1)) gradients.at[0][n][e] = 0.0f;
    }
    if constexpr (kDropping == Dropping::drawn)
      for_dropout_words<1, kKeys>(seed, query, key, head, place.sequence, [&](uint32_t word, int r, int n, int e) {
        drop_pair(word, a.dropout.threshold, 1.0f, gradients.at[r][n][e], gradients.at[r][n][e + 1]);
      });
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        gradients.at[0][n][e] = weights.at[0][n][e] * (gradients.at[0][n][e] - statistics.delta[0][e / 2]);
    narrowed = left_of<T>(gradients);
    fence_products();
    add_product_async<T>(sums, narrowed, keys.from(0), key > seen.begin);
    commit_products();
  }
  wait_for_products<0>();
  take(sums);
  if (gives_back && seen.begin < seen.end) memory.stages.give_back(fill - 1);
  write_gradient<T>(sums, a.scale * a.dropout.scale, out, row,
                    rows_in<T>(a, a.grad_q, place, place.q_row, head, place.begin, place.queries));
}

template <class T, class Shape, Dropping kDropping>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_grad_q_hopper(const __grid_constant__ HopperGradArguments a) {
  using Item = HopperGradQItem<Shape>;
  const HopperGradQMemory<Shape> memory;
  const auto multiply = [&](const Turns<Shape::kGroups, 1>& turns, int row) {
    const PhiloxKey seed = kDropping == Dropping::drawn ? philox_key(a.dropout) : PhiloxKey{};
    unsigned query_fill = 0;
    const auto tile = [&](const Item& item, const Place& place, Range seen, unsigned fill, bool gives_back) {
      grad_of_queries<T, Shape, kDropping>(a, memory, turns, place, item.head, turns.group, row, seed, query_fill, seen,
                                           fill, gives_back);
      memory.tiles.give_back(query_fill++);
    };
    for_tiles<Item>(a, a.heads, 1, Shape::kQueries, tile, [&](unsigned fill) { memory.stages.give_back(fill); });
  };
  const auto copy = [&] {
    if (threadIdx.x == 0) fill_rings(a, memory);
  };
  in_roles<Shape>(memory, copy, multiply);
}

}  // namespace fastssl::cuda
