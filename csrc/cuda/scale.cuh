// A tensor times a number that only the device knows.
#pragma once

#include <algorithm>

#include "cuda/vectors.cuh"

namespace fastssl::cuda {

inline constexpr int kScaleThreads = 256;

// Where the factor is 1, nothing is read or written.
template <class T>
__global__ void __launch_bounds__(kScaleThreads) scale(T* x, int64_t count, const float* factor) {
  const float by = *factor;
  if (by == 1.0f) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kScaleThreads * kVector;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kScaleThreads + threadIdx.x) * kVector; i < count; i += step) {
    const int inside = count - i < kVector ? static_cast<int>(count - i) : kVector;
    float values[kVector];
    load_any(x + i, inside, values);
#pragma unroll
    for (int j = 0; j < kVector; ++j) values[j] *= by;
    store_any(x + i, inside, values);
  }
}

template <class T>
void launch_scale(T* x, int64_t count, const float* factor, const DeviceLimits& limits, cudaStream_t stream) {
  constexpr int64_t kBlockElements = kScaleThreads * kVector, kBlocksPerMultiprocessor = 8;
  const int64_t blocks =
      std::min((count + kBlockElements - 1) / kBlockElements, limits.multiprocessors * kBlocksPerMultiprocessor);
  launch(scale<T>, dim3(static_cast<unsigned>(blocks)), dim3(kScaleThreads), 0, stream, x, count, factor);
}

}  // namespace fastssl::cuda
