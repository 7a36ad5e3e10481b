// What the kernels of attention's backward for compute capability 9.0 share.
#pragma once

#include "attention/hopper_kernels.cuh"

namespace fastssl::cuda {

// Statistics of queries, as QueryStatistics has them, in whole tiles of so many.
inline constexpr int kStatisticsTile = 64;

struct HopperGradArguments : AttentionGradArguments {
  TensorMap q_map, k_map, v_map, out_map, grad_out_map;
  Schedule schedule;
  Units units;
  KeptBits kept;
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
// warpgroup copies, copy(); the others multiply, multiply(turns, row), where `row` is a warp's first in its tile. They
// have the registers that the first one gives up.
template <class Shape, class Memory, class Copy, class Multiply>
__device__ __forceinline__ void in_roles(const Memory& memory, Copy copy, Multiply multiply) {
  if (threadIdx.x == 0) {
    memory.initialise(4 * Shape::kGroups);
    fence_barriers();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
  if (group < 0) {
    give_up_registers<Shape::kRegistersToCopy>();
    if (threadIdx.x == 0) copy();
  } else {
    take_registers<Shape::kRegisters>();
    const Turns<Shape::kGroups, 1> turns{group};
    turns.initialise();
    multiply(turns, 64 * group + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16);
  }
}

}  // namespace fastssl::cuda
