// Dropout masks on the device: Philox4x32-10 over logical coordinates, eight decisions a call (fastssl/ops/README.md).
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include "cuda/vectors.cuh"

namespace fastssl::cuda {

// A dropout request as the kernels take it. The seed stays on the device: a captured graph draws another mask when it
// changes, and the host never waits for it.
struct Dropout {
  uint32_t threshold = 0;  // round(p * 65536); 0: no dropout
  float scale = 1.0f;      // 65536 / (65536 - threshold)
  const int64_t* seed = nullptr;
};

// 1 / scale, exactly.
__device__ __forceinline__ float kept_share(const Dropout& dropout) {
  return static_cast<float>(65536 - static_cast<int>(dropout.threshold)) * (1.0f / 65536.0f);
}

struct PhiloxKey {
  uint32_t low, high;
};

__device__ __forceinline__ PhiloxKey philox_key(int64_t seed) {
  const auto bits = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}
__device__ __forceinline__ PhiloxKey philox_key(const Dropout& dropout) {
  return philox_key(*dropout.seed);
}

__device__ __forceinline__ uint4 philox(uint4 counter, PhiloxKey key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_0 = __umulhi(counter.x, 0xD2511F53u), low_0 = counter.x * 0xD2511F53u;
    const uint32_t high_1 = __umulhi(counter.z, 0xCD9E8D57u), low_1 = counter.z * 0xCD9E8D57u;
    counter = make_uint4(high_1 ^ counter.y ^ key.low, low_1, high_0 ^ counter.w ^ key.high, low_0);
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return counter;
}

// Zeroes what the words of one call drop and scales the rest. Element 2i is the low half of word i, 2i + 1 the high.
__device__ __forceinline__ void drop(const uint4& words, const Dropout& dropout, float (&values)[kVector]) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = (w[i] & 0xffffu) >= dropout.threshold ? values[2 * i] * dropout.scale : 0.0f;
    values[2 * i + 1] = (w[i] >> 16) >= dropout.threshold ? values[2 * i + 1] * dropout.scale : 0.0f;
  }
}

}  // namespace fastssl::cuda
