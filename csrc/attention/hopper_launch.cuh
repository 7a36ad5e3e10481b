// Which kernel for compute capability 9.0 runs, and on what units of work: a matter of shapes and of what the caller
// knows of lengths, so that the host never waits for them.
#pragma once

#include <algorithm>
#include <limits>

#include "attention/hopper_forward_kernel.cuh"
#include "attention/hopper_grad_kv_kernel.cuh"
#include "attention/hopper_grad_q_kernel.cuh"
#include "attention/hopper_one_pass_kernel.cuh"
#include "common/element.h"

namespace fastssl::cuda {

inline constexpr int64_t kKeptInCache = 24 << 20;  // bytes of keys and values, or what takes their place, of 50 MiB

// What the host knows of one side: packed rows of all sequences together, or the rows of each.
struct SideOnHost {
  int64_t rows;
  bool packed;
  int longest;  // of one sequence, as far as is known
};

// Units of whole tiles for a side, with kernels of one block a multiprocessor. `tiles` are worth sharing what an item
// copies; fewer are taken where multiprocessors would have nothing to do.
inline Units units_of(const AttentionArguments& a, const SequenceRows& side, const SideOnHost& on_host, int heads,
                      int tile, int tiles, int multiprocessors) {
  const int64_t length = on_host.packed ? on_host.longest : side.length;
  const auto items = [&](int tiles) {
    return (length + int64_t{tile} * tiles - 1) / (int64_t{tile} * tiles) * a.sequences * heads;
  };
  while (tiles > 1 && items(tiles) < multiprocessors) tiles /= 2;
  return {side, tile * tiles};
}

// `other`: the side that passes by, whose rows take `row_bytes` a head.
inline Schedule schedule_of(const AttentionArguments& a, const Units& units, const SideOnHost& on_host,
                            const SideOnHost& other, int heads, int64_t row_bytes) {
  Schedule schedule;
  if (on_host.packed) {
    schedule.units = a.sequences == 0 ? 0 : static_cast<int>(on_host.rows / units.rows + a.sequences);
    schedule.pairs = heads;
  } else {
    schedule.units = (units.side.length + units.rows - 1) / units.rows;
    schedule.pairs = a.sequences * heads;
  }
  const int64_t items = int64_t{schedule.units} * schedule.pairs;
  if (items > std::numeric_limits<int>::max() / 2) throw std::runtime_error("fastssl: attention: too many tiles");
  schedule.items = static_cast<int>(items);
  const int64_t fits = kKeptInCache / std::max<int64_t>(other.rows * row_bytes, 1);
  schedule.pairs_at_once = static_cast<int>(std::clamp<int64_t>(fits, 1, std::max(schedule.pairs, 1)));
  return schedule;
}

// The tensor of one head after another, as copies of boxes see it. Distances over which nothing lies do not count.
inline TensorMap map_of(const AttentionRows& rows, int width, int64_t num_rows, int heads, int sequences,
                        int box_rows) {
  const auto distance = [](int64_t count, int64_t given) { return count > 1 ? given : kVector; };
  return tensor_map(rows.data, width, num_rows, heads, sequences, distance(num_rows, rows.row),
                    distance(heads, rows.head), distance(sequences, rows.sequence), box_rows);
}

// Work on tiles of queries, by which keys pass, or the other way round.
template <class Shape, class Arguments>
void divide_queries(Arguments& a, const SideOnHost& queries, const SideOnHost& keys, int multiprocessors) {
  const int tiles = keys.longest <= Shape::kKeys * Shape::kStages ? 4 : 1;
  a.units = units_of(a, a.queries, queries, a.heads, Shape::kQueries, tiles, multiprocessors);
  a.schedule = schedule_of(a, a.units, queries, keys, a.heads, 4 * Shape::kWidth);
}
template <class Shape, class Arguments>
void divide_keys(Arguments& a, const SideOnHost& queries, const SideOnHost& keys, int multiprocessors) {
  const int heads = a.heads / a.heads_per_key;
  const int tiles = a.heads_per_key == 1 && queries.longest <= Shape::kQueries * Shape::kStages ? 4 : 1;
  a.units = units_of(a, a.keys, keys, heads, Shape::kKeys, tiles, multiprocessors);
  a.schedule = schedule_of(a, a.units, keys, queries, heads, int64_t{4} * Shape::kWidth * a.heads_per_key);
}

template <class Shape, class Arguments>
void map_sides(Arguments& a, const SideOnHost& queries, const SideOnHost& keys) {
  const int key_heads = a.heads / a.heads_per_key;
  a.q_map = map_of(a.q, a.width, queries.rows, a.heads, queries.packed ? 1 : a.sequences, Shape::kQueries);
  a.k_map = map_of(a.k, a.width, keys.rows, key_heads, keys.packed ? 1 : a.sequences, Shape::kKeys);
  a.v_map = map_of(a.v, a.width, keys.rows, key_heads, keys.packed ? 1 : a.sequences, Shape::kKeys);
}

template <class Shape, class Arguments>
void map_like_queries(TensorMap& map, const Arguments& a, const AttentionRows& rows, const SideOnHost& queries) {
  map = map_of(rows, a.width, queries.rows, a.heads, queries.packed ? 1 : a.sequences, Shape::kQueries);
}

// Blocks stay on their multiprocessors.
inline dim3 blocks_for(const Schedule& schedule, int multiprocessors) {
  return dim3(static_cast<unsigned>(std::min(schedule.items, multiprocessors)));
}
template <class Shape, class Arguments>
void launch_to_stay(void (*kernel)(Arguments), const Arguments& a, int multiprocessors, cudaStream_t stream) {
  launch(kernel, blocks_for(a.schedule, multiprocessors), dim3(Shape::kThreads), Shape::kSharedBytes, stream, a);
}

// body(a value of the element type).
template <class Body>
void with_element(Element element, Body body) {
  element == Element::bfloat16 ? body(BFloat16{}) : body(Half{});
}

// Memory for the forward's decisions, which the caller allocates, int32 numbers in all; 0 where none are to be kept.
inline int64_t lay_out_kept_bits(KeptBits& kept, const SideOnHost& queries, int sequences, int heads) {
  kept.tile = (queries.rows + KeptBits::kRowsBehind) * KeptBits::kWords;
  kept.head = kept.tiles * kept.tile;
  kept.sequence = queries.packed ? 0 : heads * kept.head;
  return kept.head * heads * (queries.packed ? 1 : sequences);
}

inline void launch_hopper_forward(HopperForwardArguments& a, const SideOnHost& queries, const SideOnHost& keys,
                                  Element element, int multiprocessors, cudaStream_t stream) {
  with_element(element, [&](auto value) {
    const auto run = [&](auto shape, auto dropout) {
      using Shape = decltype(shape);
      divide_queries<Shape>(a, queries, keys, multiprocessors);
      map_sides<Shape>(a, queries, keys);
      launch_to_stay<Shape>(attention_forward_hopper<decltype(value), Shape, decltype(dropout)::value>, a,
                            multiprocessors, stream);
    };
    const auto with_dropout = [&](auto shape) {
      a.dropout.threshold > 0 ? run(shape, std::true_type{}) : run(shape, std::false_type{});
    };
    if (a.width > 64) return with_dropout(HopperForwardShape<128, 2>{});
    if (a.dropout.threshold > 0 || keys.longest <= 512) return with_dropout(HopperForwardShape<64, 2>{});
    run(HopperForwardShape<64, 3>{}, std::false_type{});  // dropout needs more registers than three groups leave
  });
}

// Places of the statistics of one head's queries.
inline int64_t hopper_statistics_places(const AttentionArguments& a, const SideOnHost& queries) {
  const int64_t tiles = queries.packed ? queries.rows / kStatisticsTile + a.sequences
                                       : a.sequences * ((queries.rows + kStatisticsTile - 1) / kStatisticsTile);
  return tiles * kStatisticsTile;
}

// Wide heads with dropout have no registers left for one pass.
constexpr bool has_one_pass(int width, bool drops) {
  return width <= 64 || !drops;
}

// Memory for what blocks add in turns, which the caller allocates: numbers of float32 and of int32.
struct InTurnsSizes {
  int64_t sums, turns;
};
inline InTurnsSizes lay_out_in_turns(SumsInTurns& in_turns, const AttentionArguments& a, int64_t places) {
  constexpr int kEverything = std::numeric_limits<int>::max();
  in_turns.go_round = a.window_left == kEverything && a.window_right == kEverything;
  in_turns.parts = a.width > 64 ? 2 : 1;
  const int64_t turns = a.heads * (places / kQueriesInTurns) * in_turns.parts * kAddingWarps;
  return {turns * kSumsOfWarp * 4, turns + 1};
}

// The gradient of the queries, and then those of keys and values, which read the statistics that the first kernel
// leaves.
template <class T, int kWidth, Dropping kDropping>
void launch_two_passes(HopperGradArguments& a, const SideOnHost& queries, const SideOnHost& keys, int multiprocessors,
                       cudaStream_t stream) {
  using ForQ = HopperGradQShape<kWidth>;
  divide_queries<ForQ>(a, queries, keys, multiprocessors);
  map_sides<ForQ>(a, queries, keys);
  map_like_queries<ForQ>(a.out_map, a, a.out, queries);
  map_like_queries<ForQ>(a.grad_out_map, a, a.grad_out, queries);
  launch_to_stay<ForQ>(attention_grad_q_hopper<T, ForQ, kDropping>, a, multiprocessors, stream);
  using ForKV = HopperGradKVShape<kWidth, false>;
  divide_keys<ForKV>(a, queries, keys, multiprocessors);
  map_sides<ForKV>(a, queries, keys);
  map_like_queries<ForKV>(a.grad_out_map, a, a.grad_out, queries);
  launch_to_stay<ForKV>(attention_grad_kv_hopper<T, ForKV, kDropping>, a, multiprocessors, stream);
}

// All tiles of keys of a sequence and head one after another, as blocks that take turns need them. Who goes round waits
// for others that begin at the same time, under a mask only for those who took their tiles before.
template <class T, int kWidth, Dropping kDropping>
void launch_one_pass(HopperGradArguments& a, const SideOnHost& queries, const SideOnHost& keys, int multiprocessors,
                     cudaStream_t stream) {
  if (a.sequences == 0) return;
  const dim3 tiles(static_cast<unsigned>(a.statistics.head / kQueriesInTurns), static_cast<unsigned>(a.heads));
  launch(attention_statistics_hopper<T, kWidth>, tiles, dim3(kWarpgroup),
         size_t{2} * Tile<kQueriesInTurns, kWidth>::kBytes, stream, a);
  using Shape = HopperGradKVShape<kWidth, true>;
  a.units = {a.keys, Shape::kKeys};
  a.schedule = schedule_of(a, a.units, keys, queries, a.heads / a.heads_per_key, 1);
  a.schedule.pairs_at_once = 1;
  map_sides<Shape>(a, queries, keys);
  map_like_queries<Shape>(a.grad_out_map, a, a.grad_out, queries);
  const auto start =
      a.in_turns.go_round ? launch_together<HopperGradArguments> : launch_as_they_come<HopperGradArguments>;
  start(attention_grad_hopper<T, Shape, kDropping>, blocks_for(a.schedule, multiprocessors), dim3(Shape::kThreads),
        Shape::kSharedBytes, stream, a);
}

inline void launch_hopper_backward(HopperGradArguments& a, const SideOnHost& queries, const SideOnHost& keys,
                                   Element element, bool one_pass, int multiprocessors, cudaStream_t stream) {
  with_element(element, [&](auto value) {
    const auto run = [&](auto width, auto dropping) {
      using T = decltype(value);
      constexpr int kWidth = decltype(width)::value;
      constexpr Dropping kDropping = decltype(dropping)::value;
      if constexpr (has_one_pass(kWidth, kDropping != Dropping::none))
        if (one_pass) return launch_one_pass<T, kWidth, kDropping>(a, queries, keys, multiprocessors, stream);
      launch_two_passes<T, kWidth, kDropping>(a, queries, keys, multiprocessors, stream);
    };
    const auto with_dropping = [&](auto width) {
      if (a.dropout.threshold == 0) return run(width, std::integral_constant<Dropping, Dropping::none>{});
      if (a.kept.data) return run(width, std::integral_constant<Dropping, Dropping::kept>{});
      run(width, std::integral_constant<Dropping, Dropping::drawn>{});
    };
    a.width > 64 ? with_dropping(std::integral_constant<int, 128>{}) : with_dropping(std::integral_constant<int, 64>{});
  });
}

}  // namespace fastssl::cuda
