// Philox4x32-10, kLanes counters at once: the dropout masks of every operator (fastssl/ops/README.md).
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include "common/vec.h"

namespace fastssl {

// A dropout request as the kernels take it. threshold = round(p * 65536); a 16-bit lane below it is dropped.
struct Dropout {
  uint32_t threshold = 0;  // 0: no dropout
  float scale = 1.0f;      // 65536 / (65536 - threshold)
  uint32_t key_0 = 0;      // low half of the 64-bit seed
  uint32_t key_1 = 0;
};

namespace FASTSSL_ISA {

// Four words of 32 random bits in every lane; element 2i of a group of eight is the low half of word i, 2i + 1 the
// high.
struct PhiloxWords {
  VecU w[4];
};

// The 64-bit products of each lane with a constant, as high and low halves.
FASTSSL_INLINE void multiply_wide(VecU a, uint32_t constant, VecU& high, VecU& low) {
#if defined(__AVX512F__)
  const __m512i m = _mm512_set1_epi32(static_cast<int>(constant));
  const __m512i even = _mm512_mul_epu32((__m512i)a, m);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), m);
  high = (VecU)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  low = (VecU)_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
  const __m256i m = _mm256_set1_epi32(static_cast<int>(constant));
  const __m256i even = _mm256_mul_epu32((__m256i)a, m);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), m);
  high = (VecU)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low = (VecU)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#else
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * constant;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
#endif
}

FASTSSL_INLINE PhiloxWords philox(VecU c0, VecU c1, VecU c2, VecU c3, uint32_t key_0, uint32_t key_1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    VecU high_0, low_0, high_1, low_1;
    multiply_wide(c0, 0xD2511F53u, high_0, low_0);
    multiply_wide(c2, 0xCD9E8D57u, high_1, low_1);
    c0 = high_1 ^ c1 ^ broadcast(key_0);
    c1 = low_1;
    c2 = high_0 ^ c3 ^ broadcast(key_1);
    c3 = low_0;
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
