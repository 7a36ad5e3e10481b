// Sums and maxima over a warp, in the same order on every run.
#pragma once

#include "cuda/platform.cuh"

namespace fastssl::cuda {

inline constexpr int kWarp = 32;
inline constexpr uint32_t kWholeWarp = 0xffffffffu;

// Every lane gets the result.
template <class Operation>
__device__ __forceinline__ float reduce_warp(float value, Operation operation) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = operation(value, __shfl_xor_sync(kWholeWarp, value, distance));
  return value;
}

}  // namespace fastssl::cuda
