// Products of the rows of a matrix with a few vectors: what a model does that generates one token at a time.
//
// A product is one sum of vectors from the first element to the last and then over the lanes, whatever stands beside
// it, so that a sequence gets the same numbers alone and in a batch.
#pragma once

#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

inline constexpr int kProductRows = 4;  // rows that stand together

// Vectors that are multiplied at a time, and how many rows with so many: their sums fill half of the registers.
#if defined(__AVX512F__)
inline constexpr int kProductVectors = 8;
#else
inline constexpr int kProductVectors = 4;
#endif
constexpr int rows_of_tile(int vectors) {
  return vectors > kProductVectors / 2 ? 2 : kProductRows;
}

typedef float Four __attribute__((vector_size(16)));

// The sums over the lanes of four vectors of four lanes.
FASTSSL_INLINE Four sums_of_four(Four a, Four b, Four c, Four d) {
  const Four ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

FASTSSL_INLINE Four folded(VecF x) {
  Four parts[kLanes / 4];
  std::memcpy(parts, &x, sizeof x);
  for (int width = kLanes / 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

// The sums over the lanes of kLanes vectors, of vectors i, i + kLanes / 4, i + kLanes / 2, ... side by side for each i.
// Their order is that of sums_of_four(folded ...), for several vectors at once.
FASTSSL_INLINE VecF sums_of_all(const VecF (&x)[kLanes]) {
#if defined(__AVX512F__)
  VecF quarters[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const VecF* four = x + 4 * i;
    const auto halves = [](VecF a, VecF b) {
      return (VecF)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44) +
             (VecF)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee);
    };
    const VecF left = halves(four[0], four[1]), right = halves(four[2], four[3]);
    quarters[i] = (VecF)_mm512_shuffle_f32x4((__m512)left, (__m512)right, 0x88) +
                  (VecF)_mm512_shuffle_f32x4((__m512)left, (__m512)right, 0xdd);
  }
  const auto pairs = [](VecF a, VecF b) {
    return (VecF)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x44) + (VecF)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xee);
  };
  const VecF low = pairs(quarters[0], quarters[1]), high = pairs(quarters[2], quarters[3]);
  return (VecF)_mm512_shuffle_ps((__m512)low, (__m512)high, 0x88) +
         (VecF)_mm512_shuffle_ps((__m512)low, (__m512)high, 0xdd);
#elif defined(__AVX2__)
  VecF halves[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    halves[i] = (VecF)_mm256_permute2f128_ps((__m256)x[2 * i], (__m256)x[2 * i + 1], 0x20) +
                (VecF)_mm256_permute2f128_ps((__m256)x[2 * i], (__m256)x[2 * i + 1], 0x31);
  const auto pairs = [](VecF a, VecF b) {
    return (VecF)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x44) + (VecF)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xee);
  };
  const VecF low = pairs(halves[0], halves[1]), high = pairs(halves[2], halves[3]);
  return (VecF)_mm256_shuffle_ps((__m256)low, (__m256)high, 0x88) +
         (VecF)_mm256_shuffle_ps((__m256)low, (__m256)high, 0xdd);
#else
  return sums_of_four(x[0], x[1], x[2], x[3]);
#endif
}

// Keeps the compiler from reading a number from memory for each of its uses.
FASTSSL_INLINE void hold(VecF& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__AVX2__)
  asm("" : "+x"(x));
#else
  (void)x;
#endif
}

// out[v][r] = (or, with `add`, +=) the product of row r, `row_stride` apart, and vector v.
template <class Element>
struct RowProducts {
  const Element* rows;
  int64_t row_stride;
  const float* vectors;
  int64_t vector_stride;
  int64_t width;
  float* out;
  int64_t out_stride;
  int64_t ahead;  // how far behind the rows stand others that will be wanted soon: the memory is asked for them
  bool add = false;
};

template <int kCount>
FASTSSL_INLINE void put(const float* sums, float* out, bool add) {
  float before[kCount] = {};
  if (add) std::memcpy(before, out, sizeof before);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) before[i] += sums[i];
  std::memcpy(out, before, sizeof before);
}

// kRows rows and kVectors vectors; of `wanted` rows, kWanted are asked for.
template <int kRows, int kVectors, int kWanted, class Element>
FASTSSL_INLINE void multiply_tile(const RowProducts<Element>& p, int64_t row, int64_t vector, const Element* wanted) {
  const Element* rows = p.rows + row * p.row_stride;
  const float* vectors = p.vectors + vector * p.vector_stride;
  VecF sum[kVectors][kProductRows] = {};
  const auto step = [&](int64_t k, auto part) __attribute__((always_inline)) {
    VecF values[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) values[r] = load(rows + r * p.row_stride + k, part);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      VecF factor = load(vectors + v * p.vector_stride + k, part);
      hold(factor);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[v][r] += values[r] * factor;
    }
  };
  constexpr int64_t kLine = 64 / sizeof(Element);
  int64_t k = 0;
  for (; k + kLine <= p.width; k += kLine) {
#pragma GCC unroll 4
    for (int r = 0; r < kWanted; ++r) __builtin_prefetch(wanted + r * p.row_stride + k, 0, 2);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kLine; j += kLanes) step(k + j, Whole{});
  }
  for (; k + kLanes <= p.width; k += kLanes) step(k, Whole{});
  if (k < p.width) step(k, Part{static_cast<int>(p.width - k)});
  float* out = p.out + vector * p.out_stride + row;
  if constexpr (kRows * kVectors == kLanes && kRows > 1) {
    // Lane group i of the sums: vectors [i, i + 1) * kEach, all their rows.
    constexpr int kGroups = kLanes / 4, kEach = kVectors / kGroups;
    VecF all[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const int group = i % kGroups, place = i / kGroups;
      all[i] = sum[group * kEach + place / kRows][place % kRows];
    }
    float sums[kVectors][kRows];
    const VecF reduced = sums_of_all(all);
    std::memcpy(sums, &reduced, sizeof sums);
    for (int v = 0; v < kVectors; ++v) put<kRows>(sums[v], out + v * p.out_stride, p.add);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Four sums = sums_of_four(folded(sum[v][0]), folded(sum[v][1]), folded(sum[v][2]), folded(sum[v][3]));
      float rows_of_vector[4];
      std::memcpy(rows_of_vector, &sums, sizeof sums);
      put<kRows>(rows_of_vector, out + v * p.out_stride, p.add);
    }
  }
}

// Four rows, or one, and kVectors vectors.
template <int kRows, int kVectors, int kWanted, class Element>
void multiply_some(const RowProducts<Element>& p, int64_t vector, int64_t want) {
  constexpr int kTile = kRows == 1 ? 1 : rows_of_tile(kVectors);
  for (int row = 0; row < kRows; row += kTile, want += kWanted) {
    const Element* wanted = p.rows + want % kProductRows * p.row_stride + p.ahead;
    multiply_tile<kTile, kVectors, kWanted>(p, row, vector, wanted);
  }
}

// The same for a number of vectors that is known only here, at least kFewest.
template <int kRows, int kFewest, int kWanted, class Element>
FASTSSL_INLINE void multiply_vectors(const RowProducts<Element>& p, int64_t vector, int64_t count, int64_t want) {
  if constexpr (kFewest == kProductVectors) {
    multiply_some<kRows, kFewest, kWanted>(p, vector, want);
  } else {
    if (count == kFewest) return multiply_some<kRows, kFewest, kWanted>(p, vector, want);
    multiply_vectors<kRows, kFewest + 1, kWanted>(p, vector, count, want);
  }
}

// One to four rows and all vectors. The more tiles they make, the fewer lines each asks for, so that the memory is
// busy throughout.
template <class Element>
void multiply_rows(const RowProducts<Element>& p, int64_t num_rows, int64_t num_vectors) {
  constexpr int kHalf = kProductVectors / 2;
  if (num_rows < kProductRows) {
    RowProducts<Element> one = p;
    for (int64_t row = 0; row < num_rows; ++row, one.rows += one.row_stride, ++one.out)
      for (int64_t v = 0; v < num_vectors; v += kProductVectors)
        multiply_vectors<1, 1, 0>(one, v, num_vectors - v < kProductVectors ? num_vectors - v : kProductVectors, 0);
    return;
  }
  if (num_vectors <= kHalf) return multiply_vectors<kProductRows, 1, 4>(p, 0, num_vectors, 0);
  if (num_vectors <= kProductVectors) return multiply_vectors<kProductRows, kHalf + 1, 2>(p, 0, num_vectors, 0);
  for (int64_t v = 0, want = 0; v < num_vectors; v += kProductVectors, want += 2)
    multiply_vectors<kProductRows, 1, 1>(p, v, num_vectors - v < kProductVectors ? num_vectors - v : kProductVectors,
                                         want);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
