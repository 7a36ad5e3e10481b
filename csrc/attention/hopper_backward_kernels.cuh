// What the kernels of attention's backward for compute capability 9.0 share.
#pragma once

#include "attention/hopper_kernels.cuh"

namespace fastssl::cuda {

// Statistics of queries, as QueryStatistics has them, in whole tiles of so many.
inline constexpr int kStatisticsTile = 64;

// Sums of the queries' gradients to which blocks add in turns, for each head and each tile of so many queries: parts of
// 64 columns, of which each of four warps has 16 rows, float4 i of lane l at 32 i + l.
struct SumsInTurns {
  float4* sums = nullptr;
  uint32_t* turns = nullptr;  // how many blocks have added
  uint32_t* taken = nullptr;  // how many tiles of keys blocks have taken
  int parts = 0;
  bool go_round = false;  // whether everything is seen
};
inline constexpr int kSumsOfWarp = 8 * kWarp;  // float4

struct HopperGradArguments : AttentionGradArguments {
  TensorMap q_map, k_map, v_map, out_map, grad_out_map;
  Schedule schedule;
  Units units;
  KeptBits kept;
  SumsInTurns in_turns;
};

// Those of the first query of a sequence.
__device__ __forceinline__ float2* statistics_in_tiles(const HopperGradArguments& a, const Place& place, int head) {
  return a.statistics.data + head * a.statistics.head +
         int64_t{first_slot<kStatisticsTile>(a.queries, place.sequence)} * kStatisticsTile;
}

// A warp's 16 rows of a gradient go by way of a panel, which they alone use now.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void write_gradient(Sums<1, kWidth>& sums, float factor, const Panel<kRows, kWidth>& panel,
                                               int row, const RowsInMemory<T>& to) {
  const float factors[1][2] = {{factor, factor}};
  multiply_rows_by(sums, factors);
  put_sums<T>(sums, panel, row);
  __syncwarp();
  store_rows(panel, row, to);
  fence_for_async();
}

// A block's threads in their roles, as in the forward, which has no register left for this detour: one of the first
// warpgroup copies, copy(), which all of it calls; the next ones multiply, multiply(turns, row), where `row` is a
// warp's first in its tile; the last one does add(), if there is such a role. Some have the registers that others give
// up.
template <class Shape, class Memory, class Copy, class Multiply, class Add>
__device__ __forceinline__ void in_roles(const Memory& memory, Copy copy, Multiply multiply, Add add) {
  if (threadIdx.x == 0) {
    memory.initialise(4 * Shape::kGroups);
    fence_barriers();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
  if (group < 0) {
    give_up_registers<Shape::kRegistersToCopy>();
    copy();
  } else if (Shape::kRegistersToAdd > 0 && group == Shape::kGroups) {
    give_up_registers<Shape::kRegistersToAdd>();
    add();
  } else {
    take_registers<Shape::kRegisters>();
    const Turns<Shape::kGroups, 1> turns{group};
    turns.initialise();
    multiply(turns, 64 * group + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16);
  }
}
template <class Shape, class Memory, class Copy, class Multiply>
__device__ __forceinline__ void in_roles(const Memory& memory, Copy copy, Multiply multiply) {
  in_roles<Shape>(memory, copy, multiply, [] {});
}

}  // namespace fastssl::cuda
