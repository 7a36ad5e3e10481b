// One SIMD vector type for every CPU kernel, compiled once per instruction set.
//
// The types are the compiler's own vector extensions, so + - * / & | ^ << >> < ?: work on them as on scalars and
// a * b + c contracts to one fused multiply-add where the hardware has it. This file and what includes it must stay
// free of standard-library templates: the linker keeps one copy of an inline template, and the copy it keeps may hold
// instructions that an older machine lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FASTSSL_ISA
#error "CPU kernels are compiled once per instruction set, with -DFASTSSL_ISA=generic|avx2|avx512"
#endif

#define FASTSSL_INLINE inline __attribute__((always_inline))

namespace fastssl {

// Storage types: 16 bits in memory, float in registers.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

namespace FASTSSL_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecU16 __attribute__((vector_size(2 * kLanes)));

FASTSSL_INLINE VecF broadcast(float x) {
  return x - VecF{};  // exact for every x, so that no subtraction is left; 0 + x would turn -0 into 0
}
FASTSSL_INLINE VecU broadcast(uint32_t x) {
  return VecU{} + x;
}
FASTSSL_INLINE VecU lane_index() {
  VecU lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Reinterprets bits.
FASTSSL_INLINE VecF as_float(VecU x) {
  return (VecF)x;
}
FASTSSL_INLINE VecU as_bits(VecF x) {
  return (VecU)x;
}

// The larger and the smaller; where one operand is NaN, the second one.
FASTSSL_INLINE VecF maximum(VecF a, VecF b) {
#if defined(__AVX512F__)
  return (VecF)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
FASTSSL_INLINE VecF minimum(VecF a, VecF b) {
#if defined(__AVX512F__)
  return (VecF)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VecF)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// factor * x, but a finite x gives a finite number: the largest one where the product is beyond it. NaN for NaN.
FASTSSL_INLINE VecF finite_product(VecF x, float factor) {
  const VecF highest = broadcast(3.402823466e38f), product = x * factor;
  const VecF bounded = maximum(-highest, minimum(highest, product));  // in this order, so that NaN passes
  return as_float(as_bits(x) & 0x7fffffffu) <= highest ? bounded : product;
}

FASTSSL_INLINE VecF sqrt(VecF x) {
#if defined(__AVX512F__)
  return (VecF)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (VecF)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// Zero where |x| is below the smallest normal number: a product with one subnormal factor takes a hundred times as
// long.
FASTSSL_INLINE VecF without_subnormals(VecF x) {
  constexpr float kSmallestNormal = 1.17549435e-38f;
  return as_float(as_bits(x) & 0x7fffffffu) < kSmallestNormal ? VecF{} : x;
}

FASTSSL_INLINE float reduce_add(VecF x) {
  // A fixed tree, the same for every call: results do not depend on how the compiler would order a sum.
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
FASTSSL_INLINE float reduce_max(VecF x) {
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// ---- widening and narrowing of the 16-bit storage types ----

FASTSSL_INLINE VecF widen(VecU16 bits, BFloat16) {
  return as_float(__builtin_convertvector(bits, VecU) << 16);
}

FASTSSL_INLINE VecU16 narrow(VecF x, BFloat16) {
  const VecU u = as_bits(x);
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU quiet_nan = (u >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : quiet_nan, VecU16);
}

FASTSSL_INLINE VecF widen(VecU16 bits, Half) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__AVX2__)
  return (VecF)_mm256_cvtph_ps((__m128i)bits);
#else
  // Shift the exponent into place and rebias by a product, which also normalises subnormals.
  const VecU u = __builtin_convertvector(bits, VecU);
  const VecU magnitude = u & 0x7fffu;
  const VecF finite = as_float(magnitude << 13) * broadcast(0x1p112f);
  const VecF special = as_float((magnitude << 13) | 0x7f800000u);
  const VecF positive = magnitude >= 0x7c00u ? special : finite;
  return as_float(as_bits(positive) | ((u & 0x8000u) << 16));
#endif
}

FASTSSL_INLINE VecU16 narrow(VecF x, Half) {
#if defined(__AVX512F__)
  return (VecU16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (VecU16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const VecU u = as_bits(x);
  const VecU sign = (u >> 16) & 0x8000u;
  const VecU magnitude = u & 0x7fffffffu;
  // Normal halves: round the 13 dropped bits to nearest even, rebias the exponent; a carry overflows into infinity.
  const VecU normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 leaves the rounded multiple of 2^-24 in the low mantissa bits.
  const VecU subnormal = as_bits(as_float(magnitude) + broadcast(0.5f)) - 0x3f000000u;
  VecU half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? broadcast(uint32_t{0x7c00}) : half;
  half = x == x ? half : broadcast(uint32_t{0x7e00});
  return __builtin_convertvector(half | sign, VecU16);
#endif
}

// ---- loads and stores: unaligned, whole or the first n lanes (the others read as zero) ----

FASTSSL_INLINE VecF load(const float* p) {
  VecF x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
FASTSSL_INLINE void store(float* p, VecF x) {
  std::memcpy(p, &x, sizeof x);
}

FASTSSL_INLINE VecF load(const float* p, int n) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#else
  VecF x{};
  std::memcpy(&x, p, sizeof(float) * static_cast<unsigned>(n));
  return x;
#endif
}
FASTSSL_INLINE void store(float* p, VecF x, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)x);
#else
  std::memcpy(p, &x, sizeof(float) * static_cast<unsigned>(n));
#endif
}

template <class Storage16>
FASTSSL_INLINE VecF load(const Storage16* p) {
  VecU16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return widen(bits, Storage16{});
}
template <class Storage16>
FASTSSL_INLINE void store(Storage16* p, VecF x) {
  const VecU16 bits = narrow(x, Storage16{});
  std::memcpy(p, &bits, sizeof bits);
}
template <class Storage16>
FASTSSL_INLINE VecF load(const Storage16* p, int n) {
  VecU16 bits{};
  std::memcpy(&bits, p, sizeof(Storage16) * static_cast<unsigned>(n));
  return widen(bits, Storage16{});
}
template <class Storage16>
FASTSSL_INLINE void store(Storage16* p, VecF x, int n) {
  const VecU16 bits = narrow(x, Storage16{});
  std::memcpy(p, &bits, sizeof(Storage16) * static_cast<unsigned>(n));
}

// One value.
FASTSSL_INLINE float load_scalar(const float* p) {
  return *p;
}
template <class Storage16>
FASTSSL_INLINE float load_scalar(const Storage16* p) {
  return load(p, 1)[0];
}
FASTSSL_INLINE void store_scalar(float* p, float x) {
  *p = x;
}
template <class Storage16>
FASTSSL_INLINE void store_scalar(Storage16* p, float x) {
  store(p, broadcast(x), 1);
}

// x, rounded as a store to `p` would round it.
FASTSSL_INLINE VecF rounded(VecF x, const float* /*p*/) {
  return x;
}
template <class Storage16>
FASTSSL_INLINE VecF rounded(VecF x, const Storage16* /*p*/) {
  return widen(narrow(x, Storage16{}), Storage16{});
}

// ---- the remainder of a row: loops call one body with Whole vectors, then at most once with a Part ----

struct Whole {};
struct Part {
  int lanes;  // 1 .. kLanes - 1
};

template <class Element>
FASTSSL_INLINE VecF load(const Element* p, Whole) {
  return load(p);
}
template <class Element>
FASTSSL_INLINE VecF load(const Element* p, Part part) {
  return load(p, part.lanes);
}
template <class Element>
FASTSSL_INLINE void store(Element* p, VecF x, Whole) {
  store(p, x);
}
template <class Element>
FASTSSL_INLINE void store(Element* p, VecF x, Part part) {
  store(p, x, part.lanes);
}

// x, with `other` in the lanes past the end of the row.
FASTSSL_INLINE VecF pad(VecF x, float, Whole) {
  return x;
}
FASTSSL_INLINE VecF pad(VecF x, float other, Part part) {
  return lane_index() < static_cast<uint32_t>(part.lanes) ? x : broadcast(other);
}

// body(j, Whole or Part) for every vector that begins at element j of a row.
template <class Body>
FASTSSL_INLINE void for_each_vector(int64_t width, Body body) {
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) body(j, Whole{});
  if (j < width) body(j, Part{static_cast<int>(width - j)});
}

// A number of rows that the compiler knows.
template <int kRows>
struct Count {
  static constexpr int value = kRows;
};

// The sums of body(row, j, Whole or Part) over rows, each in the same fixed order whatever the number of rows: four
// partial sums hide the latency of the additions. The lanes of a Part that are past the end must be zero.
template <int kRows, class Body>
FASTSSL_INLINE void sums_over_rows(Count<kRows>, int64_t width, float* sums, Body body) {
  VecF sum[kRows][4] = {};
  const auto add = [&](int i, int64_t j, auto part) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[r][i] += body(r, j, part);
  };
  int64_t j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add(i, j + i * kLanes, Whole{});
  }
  for (; j + kLanes <= width; j += kLanes) add(0, j, Whole{});
  if (j < width) add(0, j, Part{static_cast<int>(width - j)});
  for (int r = 0; r < kRows; ++r) sums[r] = reduce_add((sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
}
// The sum of body(j, Whole or Part) over one row.
template <class Body>
FASTSSL_INLINE float sum_over_row(int64_t width, Body body) {
  float sum;
  sums_over_rows(Count<1>{}, width, &sum, [&](int, int64_t j, auto part) { return body(j, part); });
  return sum;
}

// The largest lane of body(j, Whole or Part) over a row.
template <class Body>
FASTSSL_INLINE float max_over_row(int64_t width, Body body) {
  VecF largest[4];
  for (int i = 0; i < 4; ++i) largest[i] = broadcast(-__builtin_inff());
  int64_t j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) largest[i] = maximum(largest[i], body(j + i * kLanes, Whole{}));
  }
  for (; j + kLanes <= width; j += kLanes) largest[0] = maximum(largest[0], body(j, Whole{}));
  if (j < width) largest[0] = maximum(largest[0], body(j, Part{static_cast<int>(width - j)}));
  return reduce_max(maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3])));
}

// ---- elementary functions ----

// e^x within about one unit in the last place; exactly 0 below -87.33 (and for -inf), +inf above 88.72, NaN for NaN.
FASTSSL_INLINE VecF exp(VecF x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  const VecF clamped = minimum(maximum(x, broadcast(-88.0f)), broadcast(89.0f));
  const VecF shifted = clamped * kLog2E + kRound;
  const VecF n = shifted - kRound;
  const VecF r = (clamped - n * kLn2High) - n * kLn2Low;
  VecF p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, so that n = 128 does not overflow before the product.
  const VecI power = (VecI)as_bits(shifted) - (VecI)as_bits(broadcast(kRound));
  const VecI half = power >> 1;
  const VecF scale_0 = as_float((VecU)((half + 127) << 23));
  const VecF scale_1 = as_float((VecU)((power - half + 127) << 23));
  VecF result = p * scale_0 * scale_1;
  result = x < broadcast(-87.33f) ? VecF{} : result;
  result = x > broadcast(88.7228394f) ? broadcast(__builtin_inff()) : result;
  return x == x ? result : x;
}

// Natural logarithm of a positive normal number, within about one unit in the last place; NaN for NaN.
FASTSSL_INLINE VecF log(VecF x) {
  // x = m 2^n with m in [sqrt(1/2), sqrt(2)): shifting by sqrt(1/2) puts the cut there.
  const VecU offset = as_bits(x) - 0x3f3504f3u;
  const VecF n = __builtin_convertvector((VecI)offset >> 23, VecF);
  const VecF m = as_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  VecF p = broadcast(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const VecF square = m * m;
  const VecF result = (p * square * m - 0.5f * square + n * -2.12194440e-4f) + m + n * 0.693359375f;
  return x == x ? result : x;
}

// tanh(x): a polynomial below 0.625, where 1 - 2 / (e^2x + 1) would lose digits (Cephes, Moshier 1989).
FASTSSL_INLINE VecF tanh(VecF x) {
  const VecF magnitude = as_float(as_bits(x) & 0x7fffffffu), square = x * x;
  VecF p = broadcast(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const VecF small = p * square * x + x;
  const VecF large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  const VecF signed_large = as_float(as_bits(large) | (as_bits(x) & 0x80000000u));
  return magnitude < 0.625f ? small : signed_large;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
