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

#if defined(__AVX512F__) || defined(__AVX2__)
// Products of 32 x 32 bits come as 64, so the even and the odd lanes of a counter word run apart, each in the low
// halves of 64-bit lanes; the products ignore what gathers in the high halves, and nothing is put in order before the
// end.
#if defined(__AVX512F__)
typedef __m512i Wide;
FASTSSL_INLINE Wide multiply(Wide a, uint32_t constant) {
  return _mm512_mul_epu32(a, _mm512_set1_epi32(static_cast<int>(constant)));
}
FASTSSL_INLINE VecU join_halves(Wide even, Wide odd) {
  return (VecU)_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}
#else
typedef __m256i Wide;
FASTSSL_INLINE Wide multiply(Wide a, uint32_t constant) {
  return _mm256_mul_epu32(a, _mm256_set1_epi32(static_cast<int>(constant)));
}
FASTSSL_INLINE VecU join_halves(Wide even, Wide odd) {
  return (VecU)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
#endif
typedef uint64_t VecWide __attribute__((vector_size(4 * kLanes)));
FASTSSL_INLINE Wide high_half(Wide a) {
  return (Wide)((VecWide)a >> 32);
}

FASTSSL_INLINE PhiloxWords philox(VecU c0, VecU c1, VecU c2, VecU c3, uint32_t key_0, uint32_t key_1) {
  Wide c[4][2] = {{(Wide)c0, high_half((Wide)c0)},
                  {(Wide)c1, high_half((Wide)c1)},
                  {(Wide)c2, high_half((Wide)c2)},
                  {(Wide)c3, high_half((Wide)c3)}};
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const Wide product_0 = multiply(c[0][odd], 0xD2511F53u), product_1 = multiply(c[2][odd], 0xCD9E8D57u);
      c[0][odd] = (Wide)((VecU)high_half(product_1) ^ (VecU)c[1][odd] ^ broadcast(key_0));
      c[1][odd] = product_1;
      c[2][odd] = (Wide)((VecU)high_half(product_0) ^ (VecU)c[3][odd] ^ broadcast(key_1));
      c[3][odd] = product_0;
    }
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return {{join_halves(c[0][0], c[0][1]), join_halves(c[1][0], c[1][1]), join_halves(c[2][0], c[2][1]),
           join_halves(c[3][0], c[3][1])}};
}
#else
// The 64-bit products of each lane with a constant, as high and low halves.
FASTSSL_INLINE void multiply_wide(VecU a, uint32_t constant, VecU& high, VecU& low) {
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * constant;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
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
#endif

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

// The kPhiloxElements 16-bit elements of the groups first_group .. first_group + kLanes - 1, in order.
struct PhiloxElements {
  VecU w[4];
};

// Lanes take the groups in such an order that the interleavings, which work within 128 bits, leave them sorted.
FASTSSL_INLINE PhiloxElements philox_elements(uint32_t first_group, uint32_t c1, uint32_t c2, uint32_t c3,
                                              uint32_t key_0, uint32_t key_1) {
  const VecU lane = lane_index();
  const VecU group = (lane & 3u) * (kLanes / 4) + (lane >> 2) + first_group;
  const PhiloxWords words = philox(group, broadcast(c1), broadcast(c2), broadcast(c3), key_0, key_1);
  VecU low_01, high_01, low_23, high_23;
  PhiloxElements sorted;
  interleave_32(words.w[0], words.w[1], low_01, high_01);
  interleave_32(words.w[2], words.w[3], low_23, high_23);
  interleave_64(low_01, low_23, sorted.w[0], sorted.w[1]);
  interleave_64(high_01, high_23, sorted.w[2], sorted.w[3]);
  return sorted;
}

// x where vector i of the elements, 0 <= i < 8, is kept, else zero.
FASTSSL_INLINE VecF keep(VecF x, const PhiloxElements& elements, int i, uint32_t threshold) {
#if defined(__AVX512F__)
  const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
  const __mmask32 kept = _mm512_cmpge_epu16_mask((__m512i)elements.w[i / 2], limit);
  return (VecF)_mm512_maskz_mov_ps(static_cast<__mmask16>(i % 2 == 0 ? kept : kept >> 16), (__m512)x);
#else
  VecU16 bits;
  std::memcpy(&bits, reinterpret_cast<const char*>(elements.w) + sizeof bits * static_cast<unsigned>(i), sizeof bits);
  return __builtin_convertvector(bits, VecU) >= threshold ? x : VecF{};
#endif
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
