// Philox4x32-10, kLanes counters at once: the dropout masks of every operator (fastssl/ops/README.md).
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include "common/dropout.h"
#include "common/vec.h"

namespace fastssl {

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

// Interleave the low and the high halves of two vectors, each within 128 bits, by 32 and by 64 bits.
FASTSSL_INLINE void interleave_32(VecU a, VecU b, VecU& low, VecU& high) {
#if defined(__AVX512F__)
  low = (VecU)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
  high = (VecU)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  low = (VecU)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
  high = (VecU)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
#else
  low = VecU{a[0], b[0], a[1], b[1]};
  high = VecU{a[2], b[2], a[3], b[3]};
#endif
}
FASTSSL_INLINE void interleave_64(VecU a, VecU b, VecU& low, VecU& high) {
#if defined(__AVX512F__)
  low = (VecU)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
  high = (VecU)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  low = (VecU)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
  high = (VecU)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  low = VecU{a[0], a[1], b[0], b[1]};
  high = VecU{a[2], a[3], b[2], b[3]};
#endif
}

inline constexpr int kPhiloxElements = 8 * kLanes;

// Writes the kPhiloxElements 16-bit elements of the groups first_group .. first_group + kLanes - 1, in order.
// Lanes take the groups in such an order that the interleavings, which work within 128 bits, leave them sorted.
FASTSSL_INLINE void philox_elements(uint16_t* elements, uint32_t first_group, uint32_t c1, uint32_t c2, uint32_t c3,
                                    uint32_t key_0, uint32_t key_1) {
  const VecU lane = lane_index();
  const VecU group = (lane & 3u) * (kLanes / 4) + (lane >> 2) + first_group;
  const PhiloxWords words = philox(group, broadcast(c1), broadcast(c2), broadcast(c3), key_0, key_1);
  VecU low_01, high_01, low_23, high_23, sorted[4];
  interleave_32(words.w[0], words.w[1], low_01, high_01);
  interleave_32(words.w[2], words.w[3], low_23, high_23);
  interleave_64(low_01, low_23, sorted[0], sorted[1]);
  interleave_64(high_01, high_23, sorted[2], sorted[3]);
  std::memcpy(elements, sorted, sizeof sorted);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
