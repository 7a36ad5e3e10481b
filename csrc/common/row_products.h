// Products of the rows of a matrix with a few vectors: what a model does that generates one token at a time.
//
// A product is one sum of vectors from the first element to the last and then over the lanes, whatever stands beside
// it, so that a sequence gets the same numbers alone and in a batch.
#pragma once

#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

inline constexpr int kProductRows = 4;  // rows that are read at a time

// Vectors that are multiplied at a time: their sums fill half of the registers.
#if defined(__AVX512F__)
inline constexpr int kProductVectors = 4;
#else
inline constexpr int kProductVectors = 2;
#endif

typedef float Four __attribute__((vector_size(16)));

FASTSSL_INLINE Four folded(VecF x) {
  Four parts[kLanes / 4];
  std::memcpy(parts, &x, sizeof x);
  for (int width = kLanes / 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

// The sums over the lanes of four vectors.
FASTSSL_INLINE Four sums_of_lanes(VecF a, VecF b, VecF c, VecF d) {
  const Four fa = folded(a), fb = folded(b), fc = folded(c), fd = folded(d);
  const Four ab = __builtin_shufflevector(fa, fb, 0, 4, 1, 5) + __builtin_shufflevector(fa, fb, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(fc, fd, 0, 4, 1, 5) + __builtin_shufflevector(fc, fd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
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
  bool add = false;
  int64_t ahead = 0;  // how many elements behind those that are read, others are asked of the memory; 0: none
};

template <int kRows, int kVectors, class Element>
FASTSSL_INLINE void multiply_tile(const RowProducts<Element>& p, int64_t row, int64_t vector, int64_t ahead) {
  const Element* rows = p.rows + row * p.row_stride;
  const float* vectors = p.vectors + vector * p.vector_stride;
  VecF sum[kVectors][kProductRows] = {};
  const auto step = [&](int64_t k, auto part) __attribute__((always_inline)) {
    VecF values[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) values[r] = load(rows + r * p.row_stride + k, part);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const VecF factor = load(vectors + v * p.vector_stride + k, part);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[v][r] += values[r] * factor;
    }
  };
  constexpr int64_t kLine = 64 / sizeof(Element);
  int64_t k = 0;
  for (; k + kLine <= p.width; k += kLine) {
    if (ahead != 0) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows + r * p.row_stride + k + ahead, 0, 3);
    }
#pragma GCC unroll 8
    for (int64_t j = 0; j < kLine; j += kLanes) step(k + j, Whole{});
  }
  for (; k + kLanes <= p.width; k += kLanes) step(k, Whole{});
  if (k < p.width) step(k, Part{static_cast<int>(p.width - k)});
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    float* out = p.out + (vector + v) * p.out_stride + row;
    Four sums = sums_of_lanes(sum[v][0], sum[v][1], sum[v][2], sum[v][3]);
    Four before{};
    if (p.add) std::memcpy(&before, out, sizeof(float) * kRows);
    sums += before;
    std::memcpy(out, &sums, sizeof(float) * kRows);
  }
}

template <int kRows, class Element>
FASTSSL_INLINE void multiply_group(const RowProducts<Element>& p, int64_t row, int64_t num_vectors) {
  int64_t ahead = p.ahead, v = 0;
  for (; v + kProductVectors <= num_vectors; v += kProductVectors, ahead = 0)
    multiply_tile<kRows, kProductVectors>(p, row, v, ahead);
  if (num_vectors - v == 1) multiply_tile<kRows, 1>(p, row, v, ahead);
#if defined(__AVX512F__)
  if (num_vectors - v == 2) multiply_tile<kRows, 2>(p, row, v, ahead);
  if (num_vectors - v == 3) multiply_tile<kRows, 3>(p, row, v, ahead);
#endif
}

template <class Element>
FASTSSL_INLINE void multiply_rows(const RowProducts<Element>& p, int64_t num_rows, int64_t num_vectors) {
  int64_t row = 0;
  for (; row + kProductRows <= num_rows; row += kProductRows) multiply_group<kProductRows>(p, row, num_vectors);
  for (; row < num_rows; ++row) multiply_group<1>(p, row, num_vectors);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
