// Products of bytes, summed exactly in 32 bits: the arithmetic of 8-bit weights where no instruction has it whole.
#pragma once

#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

typedef int8_t VecI8 __attribute__((vector_size(kLanes)));
typedef int16_t VecI16 __attribute__((vector_size(4 * kLanes)));

FASTSSL_INLINE VecI load_quads(const void* p) {
  VecI quads;
  std::memcpy(&quads, p, sizeof quads);
  return quads;
}
FASTSSL_INLINE int32_t load_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof quad);
  return quad;
}

// Four signed bytes in every lane, widened for the products below.
struct SignedBytes {
  VecI16 even, odd;
  FASTSSL_INLINE explicit SignedBytes(int32_t quad)
      : even(((VecI16)(VecI{} + quad) << 8) >> 8), odd((VecI16)(VecI{} + quad) >> 8) {}
};
// Four unsigned bytes in every lane.
struct UnsignedBytes {
  VecI16 even, odd;
  FASTSSL_INLINE explicit UnsignedBytes(VecI quads)
      : even((VecI16)(quads & 0x00ff00ff)), odd((VecI16)((VecU)quads >> 8 & 0x00ff00ffu)) {}
};

// The sums of the products of neighbouring 16-bit elements, exact: |255 * 127 * 2| is far below 2^31.
FASTSSL_INLINE VecI multiply_pairs(VecI16 a, VecI16 b) {
#if defined(__AVX512BW__)
  return (VecI)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (VecI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  const VecI low_a = ((VecI)a << 16) >> 16, low_b = ((VecI)b << 16) >> 16;
  return low_a * low_b + ((VecI)a >> 16) * ((VecI)b >> 16);
#endif
}

// Rounds to the nearest whole number, even ones first; the intrinsics keep the compiler from fusing the product before.
FASTSSL_INLINE VecI rounded(VecF x) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtps_epi32((__m256)x);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  return (VecI)(as_bits(x + kRound) - as_bits(broadcast(kRound)));
#endif
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
