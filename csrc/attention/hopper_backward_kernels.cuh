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

}  // namespace fastssl::cuda
