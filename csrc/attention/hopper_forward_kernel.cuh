// Attention for compute capability 9.0, forward. Blocks stay on their multiprocessor and go from item to item. One
// thread copies panels of queries, keys and values; warpgroups of 64 queries each multiply (FlashAttention-3, Shah et
// al. 2024, arXiv 2407.08608).
#pragma once

#include "attention/attention_forward_kernel.cuh"
#include "attention/hopper_kernels.cuh"

namespace fastssl::cuda {

struct HopperForwardArguments : AttentionArguments {
  TensorMap q_map, k_map, v_map;
  Schedule schedule;
  Units units;
  KeptBits kept;  // for the backward, or without data
};

template <int kWidthValue, int kGroupsValue>
struct HopperForwardShape {
  static constexpr int kWidth = kWidthValue, kGroups = kGroupsValue;  // warpgroups that multiply
  static constexpr int kQueries = 64 * kGroups, kKeys = 128, kStages = kWidth == 64 ? 4 : 2;
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kRegisters = kGroups == 2 ? 240 : 160, kRegistersToCopy = kGroups == 2 ? 24 : 32;
  static_assert(kGroups * kRegisters + kRegistersToCopy <= (kGroups + 1) * registers_at_first(kThreads));
  using QueryPanel = Panel<kQueries, kWidth>;
  using KeyPanel = Panel<kKeys, kWidth>;
  using QueryRing = Ring<2>;
  using KeyRing = Ring<kStages>;
  static constexpr int kPanelBytes = 2 * QueryPanel::kBytes + 2 * kStages * KeyPanel::kBytes;
  static constexpr int kBarriers = 2 * (2 + 2 * kStages);
  static constexpr int kSharedBytes = kPanelBytes + kBarriers * static_cast<int>(sizeof(Barrier));
};

template <class Shape>
struct HopperForwardMemory {
  unsigned char* panels;
  typename Shape::QueryRing query_ring;
  typename Shape::KeyRing key_ring, value_ring;

  __device__ HopperForwardMemory() : panels(shared_panels()) {
    auto* barriers = reinterpret_cast<Barrier*>(panels + Shape::kPanelBytes);
    const auto take = [&](int count) { return (barriers += count) - count; };
    query_ring = {take(2), take(2)};
    key_ring = {take(Shape::kStages), take(Shape::kStages)};
    value_ring = {take(Shape::kStages), take(Shape::kStages)};
  }
  __device__ __forceinline__ typename Shape::QueryPanel queries(unsigned fill) const {
    return {panels + query_ring.panel_of(fill) * Shape::QueryPanel::kBytes};
  }
  __device__ __forceinline__ typename Shape::KeyPanel keys(unsigned fill) const {
    return {panels + 2 * Shape::QueryPanel::kBytes + key_ring.panel_of(fill) * Shape::KeyPanel::kBytes};
  }
  __device__ __forceinline__ typename Shape::KeyPanel values(unsigned fill) const {
    return {keys(fill).memory + Shape::kStages * Shape::KeyPanel::kBytes};
  }
};

template <class Shape>
using HopperForwardItem = HopperItem<KeysOfQueries, Shape::kQueries, Shape::kKeys, Shape::kStages>;

// The thread that copies.
template <class Shape>
__device__ __forceinline__ void fill_rings(const HopperForwardArguments& a, const HopperForwardMemory<Shape>& memory) {
  using Item = HopperForwardItem<Shape>;
  prefetch(a.q_map);
  prefetch(a.k_map);
  prefetch(a.v_map);
  unsigned query_fill = 0, key_fill = 0;
  const auto queries = [&](const Item& item, int begin) {
    Barrier& full = memory.query_ring.begin_fill(query_fill, Shape::QueryPanel::kBytes);
    copy_panel(memory.queries(query_fill++), a.q_map, full, item.place.q_row + begin, item.head,
               sequence_in_map(a.queries, item.place));
  };
  const auto keys = [&](const Item& item, int key, int) {
    const auto copy = [&](const auto& ring, const auto& panel, const TensorMap& map) {
      copy_panel(panel, map, ring.begin_fill(key_fill, Shape::KeyPanel::kBytes), item.place.k_row + key,
                 item.head / a.heads_per_key, sequence_in_map(a.keys, item.place));
    };
    copy(memory.key_ring, memory.keys(key_fill), a.k_map);
    copy(memory.value_ring, memory.values(key_fill), a.v_map);
    ++key_fill;
  };
  for_copies<Item>(a, a.heads, 1, Shape::kQueries, Shape::kKeys, queries, keys, [](const Item&, int, int, int) {});
}

// A warpgroup's part of a tile of queries: 64 of them and the keys that the whole tile sees.
template <class T, class Shape, bool kDropout>
struct HopperForwardTile {
  static constexpr int kKeys = Shape::kKeys, kWidth = Shape::kWidth;
  using Scores = Sums<1, kKeys>;

  const HopperForwardArguments& a;
  const HopperForwardMemory<Shape>& memory;
  const Turns<Shape::kGroups, 1>& turns;
  const ScoreRules& rules;
  const Place& place;    // begins where the tile does
  int head, group, row;  // `row`: the warp's first in the tile
  Range seen;
  unsigned first_fill;  // of the keys at seen.begin
  bool gives_back;

  RunningSoftmax<1> softmax;
  Sums<1, kWidth> out;
  Left<1, kKeys> weights;

  __device__ __forceinline__ unsigned fill_of(int key) const {
    return first_fill + static_cast<unsigned>((key - seen.begin) / kKeys);
  }
  __device__ __forceinline__ void start_scores(Scores& scores, const typename Shape::QueryPanel& queries, int key) {
    memory.key_ring.wait(fill_of(key));
    fence_products();
    multiply_rows_async<T>(scores, queries.from(64 * group), memory.keys(fill_of(key)).from(0));
    commit_products();
  }
  __device__ __forceinline__ void end_with_keys(int key) const {
    if (gives_back) memory.key_ring.give_back(fill_of(key));
  }
  // Packed rows behind the last key belong to another sequence.
  __device__ __forceinline__ void start_output(int key) {
    const auto values = memory.values(fill_of(key));
    memory.value_ring.wait(fill_of(key));
    if (a.keys.offsets && key + kKeys > place.keys) clear_rows(values, place.keys - key, 1 + Shape::kGroups + group);
    fence_products();
    add_product_async<T>(out, weights, values.from(0), key > seen.begin);
    commit_products();
  }
  __device__ __forceinline__ void end_with_values(int key) const {
    if (gives_back) memory.value_ring.give_back(fill_of(key));
  }
  __device__ __forceinline__ void weigh(Scores& scores, int key, float (&correction)[1][2]) {
    const int query = place.begin + row;
    softmax.weigh(scores, to_scores(rules, query, key, scores), correction);
    if constexpr (kDropout) drop(scores, query, key);
  }
  __device__ __forceinline__ void drop(Scores& scores, int query, int key) const {
    static_assert(kKeys == KeptBits::kKeys);
    const PhiloxKey seed = philox_key(number_read_anew(a.dropout.seed));
    uint32_t kept[2] = {0, 0};
    for_dropout_words<1, kKeys>(seed, query, key, head, place.sequence, [&](uint32_t word, int r, int n, int e) {
      const bool low = (word & 0xffffu) >= a.dropout.threshold, high = (word >> 16) >= a.dropout.threshold;
      if (!low) scores.at[r][n][e] = 0.0f;
      if (!high) scores.at[r][n][e + 1] = 0.0f;
      kept[e / 2] |= (low ? 1u : 0u) << 2 * n | (high ? 2u : 0u) << 2 * n;
    });
    if (!a.kept.data) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row_of_half = query + 8 * half + lane_of_warp() / 4;
      uint32_t* words = a.kept.of(place, head, row_of_half, key);
      if (words && row_of_half < place.queries) words[lane_of_warp() % 4] = kept[half];
    }
  }

  // The products of a tile of keys run while the weights of the one before are multiplied with its values.
  __device__ __forceinline__ void attend(const typename Shape::QueryPanel& queries) {
    Scores scores;
    float correction[1][2];
    int key = seen.begin;
    if (key >= seen.end) return out.clear();
    start_scores(scores, queries, key);
    wait_for_products<0>();
    take(scores);
    end_with_keys(key);
    weigh(scores, key, correction);
    weights = left_of<T>(scores);
    for (; key + kKeys < seen.end; key += kKeys) {
      turns.begin();
      start_scores(scores, queries, key + kKeys);
      start_output(key);
      turns.end();
      wait_for_products<1>();
      take(scores);
      end_with_keys(key + kKeys);
      weigh(scores, key + kKeys, correction);
      wait_for_products<0>();
      take(out);
      end_with_values(key);
      multiply_rows_by(out, correction);
      weights = left_of<T>(scores);
    }
    start_output(key);
    wait_for_products<0>();
    take(out);
    end_with_values(key);
  }

  // The queries' place in shared memory takes the output on its way, of which this warp has 16 rows.
  __device__ __forceinline__ void finish(const typename Shape::QueryPanel& panel) {
    const int lane = lane_of_warp();
    float factors[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factors[0][half] = softmax.output_factor(0, half, a.dropout.scale);
      const int query = place.begin + row + 8 * half + lane / 4;
      if (lane % 4 == 0 && query < place.queries) a.lse[statistics_of(a, place, head) + query] = softmax.lse(0, half);
    }
    multiply_rows_by(out, factors);
    meet(1 + Shape::kGroups + group, kWarpgroup);  // none of its warps multiplies the queries any more
    put_sums<T>(out, panel, row);
    __syncwarp();
    store_rows(panel, row, rows_in<T>(a, a.out, place, place.q_row, head, place.begin, place.queries));
    fence_for_async();
  }
};

template <class T, class Shape, bool kDropout>
__device__ __forceinline__ void multiply_panels(const HopperForwardArguments& a,
                                                const HopperForwardMemory<Shape>& memory, int group) {
  using Item = HopperForwardItem<Shape>;
  const Turns<Shape::kGroups, 1> turns{group};
  turns.initialise();
  const int row = 64 * group + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16;
  unsigned query_fill = 0;
  const auto attend = [&](const Item& item, const Place& place, Range seen, unsigned fill, bool gives_back) {
    const ScoreRules rules(a, place, item.head);
    HopperForwardTile<T, Shape, kDropout> tile{a,   memory, turns, rules,      place, item.head, group,
                                               row, seen,   fill,  gives_back, {},    {},        {}};
    const auto queries = memory.queries(query_fill);
    memory.query_ring.wait(query_fill);
    tile.attend(queries);
    tile.finish(queries);
    memory.query_ring.give_back(query_fill++);
  };
  const auto skip = [&](unsigned fill) {
    memory.key_ring.give_back(fill);
    memory.value_ring.give_back(fill);
  };
  for_tiles<Item>(a, a.heads, 1, Shape::kQueries, attend, skip);
}

template <class T, class Shape, bool kDropout>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_hopper(const __grid_constant__ HopperForwardArguments a) {
  const HopperForwardMemory<Shape> memory;
  if (threadIdx.x == 0) {
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    memory.query_ring.initialise(kWarps);
    memory.key_ring.initialise(kWarps);
    memory.value_ring.initialise(kWarps);
    fence_barriers();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
  if (group < 0) {
    give_up_registers<Shape::kRegistersToCopy>();
    if (threadIdx.x == 0) fill_rings(a, memory);
  } else {
    take_registers<Shape::kRegisters>();
    multiply_panels<T, Shape, kDropout>(a, memory, group);
  }
}

}  // namespace fastssl::cuda
