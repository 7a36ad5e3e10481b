// Attention for compute capability 9.0, the gradients of keys and values: panels of queries and of the output's
// gradient, from all heads that share the keys, pass by tiles of keys and values. See attention_grad_kv_kernel.cuh for
// the same on any GPU.
#pragma once

#include "attention/attention_forward_kernel.cuh"
#include "attention/attention_grad_kv_kernel.cuh"
#include "attention/hopper_backward_kernels.cuh"
#include "attention/hopper_turns.cuh"

namespace fastssl::cuda {

// Products of as many queries at a time as leave registers for the sums, which go on while the next scores are made.
// `kOnePassValue`: the scores' gradients are left in shared memory for one more warpgroup, which makes those of the
// queries of them (hopper_one_pass_kernel.cuh).
template <int kWidthValue, bool kOnePassValue>
struct HopperGradKVShape {
  static constexpr int kWidth = kWidthValue, kGroups = 2;
  // Keys are a left operand in registers, where the compiler leaves them alone: see grad_of_queries.
  static constexpr bool kOnePass = kOnePassValue, kHoldsKeys = kWidth == 64 && kOnePass;
  static constexpr int kKeys = 64 * kGroups, kQueries = 64, kAtOnce = 4096 / kWidth;
  static constexpr int kTiles = kWidth == 64 ? 2 : 1;  // of keys in shared memory
  static constexpr int kStages = (kOnePass ? 384 : 512) / kWidth, kScores = kOnePass ? 2 : 0,
                       kTickets = kOnePass ? 4 : 0;
  static constexpr int kThreads = (kGroups + (kOnePass ? 2 : 1)) * kWarpgroup;
  static constexpr int kRegisters = kOnePass ? 208 : 240;
  static constexpr int kRegistersToCopy = kOnePass ? 32 : 24;
  static constexpr int kRegistersToAdd = kOnePass ? 2 * (256 - kRegisters) - kRegistersToCopy : 0;
  static_assert(kGroups * kRegisters + kRegistersToCopy + kRegistersToAdd <=
                kThreads / kWarpgroup * registers_at_first(kThreads));
  using KeyPanel = Panel<kKeys, kWidth>;
  using QueryPanel = Panel<kQueries, kWidth>;
  using ScorePanel = Panel<kKeys, kQueries>;
  static constexpr int kTileBytes = 2 * KeyPanel::kBytes, kStageBytes = 2 * QueryPanel::kBytes;
  static constexpr int kStatisticsBytes = kQueries * static_cast<int>(sizeof(float2));
  static constexpr int kKeptBytes = kQueries * KeptBits::kRowBytes;
  static constexpr int kPanelBytes = kTiles * kTileBytes + kStages * kStageBytes + kScores * ScorePanel::kBytes;
  static constexpr int kBarriers = 2 * (kTiles + 2 * kStages + kScores + 2 * kTickets);
  static constexpr int kSharedBytes = kPanelBytes + kStages * (kStatisticsBytes + kKeptBytes) +
                                      kTickets * static_cast<int>(sizeof(Ticket) + sizeof(KeyTile)) +
                                      kBarriers * static_cast<int>(sizeof(Barrier));
  static_assert(kStatisticsTile == kQueries && kQueries <= KeptBits::kRowsBehind && kKeys == KeptBits::kKeys);
};

template <class Shape>
struct HopperGradKVMemory {
  unsigned char *panels, *statistics;
  Ring<Shape::kTiles> tiles;                          // of keys and values
  Ring<Shape::kStages> stages;                        // of queries, dO and statistics
  Ring<Shape::kStages> kept;                          // of decisions on a tile of keys, for the queries of a stage
  Ring<Shape::kOnePass ? Shape::kScores : 1> scores;  // of their gradients, a panel a stage
  Ring<Shape::kOnePass ? Shape::kTickets : 1> tickets, work;

  __device__ HopperGradKVMemory() : panels(shared_panels()), statistics(panels + Shape::kPanelBytes) {
    auto* barriers = reinterpret_cast<Barrier*>(tile_of(0) + Shape::kTickets);
    const auto take = [&](int count) { return (barriers += count) - count; };
    tiles = {take(Shape::kTiles), take(Shape::kTiles)};
    stages = {take(Shape::kStages), take(Shape::kStages)};
    kept = {take(Shape::kStages), take(Shape::kStages)};
    scores = {take(Shape::kScores), take(Shape::kScores)};
    tickets = {take(Shape::kTickets), take(Shape::kTickets)};
    work = {take(Shape::kTickets), take(Shape::kTickets)};
  }
  __device__ __forceinline__ void initialise(uint32_t warps) const {
    constexpr uint32_t kAdding = Shape::kOnePass ? kWarpgroup / kWarp : 0;
    tiles.initialise(warps + kAdding);
    stages.initialise(warps);
    kept.initialise(warps);
    if constexpr (Shape::kOnePass) {
      scores.initialise(kAdding, warps);
      tickets.initialise(kAdding);
      work.initialise(warps + 1);
    }
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
  __device__ __forceinline__ typename Shape::ScorePanel of_scores(unsigned fill) const {
    return {panels + Shape::kTiles * Shape::kTileBytes + Shape::kStages * Shape::kStageBytes +
            scores.panel_of(fill) * Shape::ScorePanel::kBytes};
  }
  __device__ __forceinline__ unsigned char* statistics_of(unsigned fill) const {
    return statistics + stages.panel_of(fill) * Shape::kStatisticsBytes;
  }
  __device__ __forceinline__ unsigned char* kept_of(unsigned fill) const {
    return statistics + Shape::kStages * Shape::kStatisticsBytes + kept.panel_of(fill) * Shape::kKeptBytes;
  }
  __device__ __forceinline__ Ticket* ticket_of(unsigned fill) const {
    unsigned char* first = statistics + Shape::kStages * (Shape::kStatisticsBytes + Shape::kKeptBytes);
    return reinterpret_cast<Ticket*>(first) + tickets.panel_of(fill);
  }
  __device__ __forceinline__ KeyTile* tile_of(unsigned fill) const {
    return reinterpret_cast<KeyTile*>(ticket_of(0) + Shape::kTickets) + work.panel_of(fill);
  }
};

// What the thread that copies starts, and how many of each it has.
template <class Shape, Dropping kDropping>
struct HopperGradKVCopies {
  const HopperGradArguments& a;
  const HopperGradKVMemory<Shape>& memory;
  unsigned key_fill = 0, query_fill = 0, kept_fill = 0;

  __device__ __forceinline__ void prefetch_maps() const {
    prefetch(a.q_map);
    prefetch(a.k_map);
    prefetch(a.v_map);
    prefetch(a.grad_out_map);
  }
  // A tile of keys begins at place.begin.
  __device__ __forceinline__ void keys(const Place& place, int key_head) {
    Barrier& full = memory.tiles.begin_fill(key_fill, Shape::kTileBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_keys(key_fill, which), map, full, place.k_row + place.begin, key_head,
                 sequence_in_map(a.keys, place));
    };
    copy(a.k_map, 0);
    copy(a.v_map, 1);
    ++key_fill;
  }
  __device__ __forceinline__ void queries(const Place& place, int head, int query) {
    Barrier& full = memory.stages.begin_fill(query_fill, Shape::kStageBytes + Shape::kStatisticsBytes);
    const auto copy = [&](const TensorMap& map, int which) {
      copy_panel(memory.of_queries(query_fill, which), map, full, place.q_row + query, head,
                 sequence_in_map(a.queries, place));
    };
    copy(a.q_map, 0);
    copy(a.grad_out_map, 1);
    copy_bytes(memory.statistics_of(query_fill), statistics_in_tiles(a, place, head) + query, Shape::kStatisticsBytes,
               full);
    ++query_fill;
  }
  // The decisions of the queries on the tile of keys.
  __device__ __forceinline__ void decisions(const Place& place, int head, int query) {
    if constexpr (kDropping == Dropping::kept) {
      Barrier& full = memory.kept.begin_fill(kept_fill, Shape::kKeptBytes);
      copy_bytes(memory.kept_of(kept_fill), a.kept.of(place, head, query, place.begin), Shape::kKeptBytes, full);
      ++kept_fill;
    }
  }
};

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

// The queries that see a tile of keys, kQueries at a step, for each head that shares them.
struct QueriesInOrder {
  int key_head, begin, steps;

  __device__ __forceinline__ int query_at(int step) const {
    return begin + step * kStatisticsTile;
  }
};

// A warpgroup's part of a tile: 64 keys and the queries that see the tile.
template <class T, class Shape, Dropping kDropping, class Queries>
struct HopperGradKVTile {
  static constexpr int kAtOnce = Shape::kAtOnce;
  using Products = Sums<1, kAtOnce>;

  const HopperGradArguments& a;
  const HopperGradKVMemory<Shape>& memory;
  const Turns<Shape::kGroups, 1>& turns;
  const Place& place;  // begins where the tile does
  const Queries& seen;
  int row;  // the warp's first in the tile
  PhiloxKey seed;
  const unsigned& key_fill;
  bool gives_back;

  Sums<1, Shape::kWidth> of_keys, of_values;
  Left<1, kAtOnce> narrowed_weights, narrowed_gradients;

  __device__ __forceinline__ int own_barrier() const {
    return 1 + Shape::kGroups + turns.group;
  }
  // What is behind the last row belongs to another sequence.
  template <class Panel>
  __device__ __forceinline__ void clear_behind(const Panel& first, const Panel& second, int rows) const {
    clear_rows(first, rows, own_barrier());
    clear_rows(second, rows, own_barrier());
  }

  // `fill` is that of the queries of the first step, then of those behind the last.
  __device__ __forceinline__ void add_queries(unsigned& fill, unsigned& kept_fill) {
    const auto keys = memory.of_keys(key_fill, 0), values = memory.of_keys(key_fill, 1);
    memory.tiles.wait(key_fill);
    if (Shape::kOnePass && a.keys.offsets && place.begin + Shape::kKeys > place.keys)
      clear_behind(keys, values, place.keys - place.begin);
    const auto left_keys = left_rows<Shape::kHoldsKeys>(keys, 64 * turns.group, row);
    const auto left_values = values.from(64 * turns.group);
    if (seen.steps == 0) {
      of_keys.clear();
      of_values.clear();
    }
#pragma unroll 1
    for (int round = 0; round < a.heads_per_key; ++round)
#pragma unroll 1
      for (int step = 0; step < seen.steps; ++step, ++fill) {
        const int query = seen.query_at(step);
        memory.stages.wait(fill);
        if (a.queries.offsets && query + Shape::kQueries > place.queries)
          clear_behind(memory.of_queries(fill, 0), memory.of_queries(fill, 1), place.queries - query);
        const unsigned of_decisions = Shape::kOnePass ? fill : kept_fill++;
        if constexpr (kDropping == Dropping::kept) memory.kept.wait(of_decisions);
#pragma unroll
        for (int first = 0; first < Shape::kQueries; first += kAtOnce)
          add_some(left_keys, left_values, seen.key_head * a.heads_per_key + round, query, first, fill, of_decisions,
                   round + step > 0);
        if constexpr (Shape::kOnePass) memory.scores.hand_over(fill);
        if constexpr (kDropping == Dropping::kept) memory.kept.give_back(of_decisions);
      }
    wait_for_products<0>();
    take(of_keys);
    take(of_values);
    if (gives_back && seen.steps > 0) memory.stages.give_back(fill - 1);
  }

  // kAtOnce queries, from `first` on in their stage, whose first query is `query`. `follows`: not the first stage.
  template <class Keys, class Values>
  __device__ __forceinline__ void add_some(const Keys& keys, const Values& values, int head, int query, int first,
                                           unsigned fill, unsigned of_decisions, bool follows) {
    const auto queries = memory.of_queries(fill, 0).from(first), grad_out = memory.of_queries(fill, 1).from(first);
    const unsigned char* statistics = memory.statistics_of(fill) + first * sizeof(float2);
    const int key = place.begin + row;
    const bool adds = follows || first > 0;
    Products weights, gradients;
    turns.begin();
    fence_products();
    multiply_rows_async<T>(weights, keys, queries);
    commit_products();
    multiply_rows_async<T>(gradients, values, grad_out);
    commit_products();
    turns.end();
    const ScoreRules rules(a, place, head);
    wait_for_products<1>();  // also for the sums with the queries before
    take(weights);
    if (gives_back && follows && first == 0) memory.stages.give_back(fill - 1);
    to_weights_of_keys(rules, query + first, key, statistics, weights);
    wait_for_products<0>();
    take(gradients);
    if constexpr (kDropping == Dropping::kept)
      to_gradients(memory.kept_of(of_decisions) + first * KeptBits::kRowBytes, row, statistics, weights, gradients);
    else
      to_gradients(kDropping == Dropping::drawn ? a.dropout : Dropout{}, seed, query + first, key, head, place.sequence,
                   statistics, weights, gradients);
    if constexpr (Shape::kOnePass) {
      if (first == 0) memory.scores.wait_to_fill(fill);
      put_sums<T>(gradients, memory.of_scores(fill), row, first / kVector);
    }
    narrowed_weights = left_of<T>(weights);
    narrowed_gradients = left_of<T>(gradients);
    fence_products();
    add_product_async<T>(of_values, narrowed_weights, grad_out, adds);
    add_product_async<T>(of_keys, narrowed_gradients, queries, adds);
    commit_products();
  }

  // By way of the values: the keys may still be multiplied.
  __device__ __forceinline__ void finish() {
    const auto values = memory.of_keys(key_fill, 1);
    meet(own_barrier(), kWarpgroup);  // none of its warps multiplies the values any more
    const auto to = [&](const AttentionRows& tensor) {
      return rows_in<T>(a, tensor, place, place.k_row, seen.key_head, place.begin, place.keys);
    };
    write_gradient<T>(of_keys, a.scale * a.dropout.scale, values, row, to(a.grad_k));
    __syncwarp();
    write_gradient<T>(of_values, a.dropout.scale, values, row, to(a.grad_v));
  }
};

template <class T, class Shape, Dropping kDropping>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_grad_kv_hopper(const __grid_constant__ HopperGradArguments a) {
  using Item = HopperItem<QueriesOfKeys, Shape::kKeys, Shape::kQueries, Shape::kStages>;
  const HopperGradKVMemory<Shape> memory;
  const int key_heads = a.heads / a.heads_per_key;
  const auto copy = [&] {
    if (threadIdx.x > 0) return;
    HopperGradKVCopies<Shape, kDropping> copies{a, memory};
    copies.prefetch_maps();
    const auto head = [&](const Item& item, int round) { return item.head * a.heads_per_key + round; };
    for_copies<Item>(
        a, key_heads, a.heads_per_key, Shape::kKeys, Shape::kQueries,
        [&](const Item& item, int begin) { copies.keys(item.tile(begin), item.head); },
        [&](const Item& item, int query, int round) { copies.queries(item.place, head(item, round), query); },
        [&](const Item& item, int begin, int query, int round) {
          copies.decisions(item.tile(begin), head(item, round), query);
        });
  };
  const auto multiply = [&](const Turns<Shape::kGroups, 1>& turns, int row) {
    const PhiloxKey seed = kDropping == Dropping::drawn ? philox_key(a.dropout) : PhiloxKey{};
    unsigned key_fill = 0, kept_fill = 0;
    const auto add = [&](const Item& item, const Place& place, Range seen, unsigned fill, bool gives_back) {
      const QueriesInOrder queries{item.head, seen.begin, static_cast<int>(item.fills(seen))};
      HopperGradKVTile<T, Shape, kDropping, QueriesInOrder> tile{a,        memory,     turns, place, queries, row, seed,
                                                                 key_fill, gives_back, {},    {},    {},      {}};
      tile.add_queries(fill, kept_fill);
      tile.finish();
      memory.tiles.give_back(key_fill++);
    };
    for_tiles<Item>(a, key_heads, a.heads_per_key, Shape::kKeys, add,
                    [&](unsigned fill) { memory.stages.give_back(fill); });
  };
  in_roles<Shape>(memory, copy, multiply);
}

}  // namespace fastssl::cuda
