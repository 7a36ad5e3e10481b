// Products of a few rows with a packed weight, and with one another; by one thread.
#pragma once

#include "common/product.h"
#include "pre_norm_block/pre_norm_block.h"

namespace fastssl {
namespace FASTSSL_ISA {

// A weight, (depth, columns), in strips of pre_norm::kStrip columns or what is left, each packed; the one of column s
// begins at s * depth.
struct Packed {
  const float* data;
  int64_t depth, columns;

  int64_t width(int64_t s) const {
    return columns - s < pre_norm::kStrip ? columns - s : pre_norm::kStrip;
  }
};

// Packs the transpose of `weight`, (columns, depth).
inline Packed pack_transposed(float*& memory, const float* weight, int64_t columns, int64_t depth) {
  const Packed packed{memory, depth, columns};
  for (int64_t s = 0; s < columns; s += pre_norm::kStrip)
    transpose(memory + s * depth, weight + s * depth, depth, packed.width(s), depth);
  memory += columns * depth;
  return packed;
}

// Packs `weight`, (depth, columns).
inline Packed pack(float*& memory, const float* weight, int64_t depth, int64_t columns) {
  const Packed packed{memory, depth, columns};
  for (int64_t s = 0; s < columns; s += pre_norm::kStrip) {
    const int64_t width = packed.width(s);
    float* const strip = memory + s * depth;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < width; j += kLanes) store(strip + k * width + j, load(weight + k * columns + s + j));
  }
  memory += columns * depth;
  return packed;
}

// c (rows, columns) = a (rows, depth) b + bias.
inline void multiply(const Matrix& c, const Matrix& a, int64_t rows, const Packed& b, const float* bias) {
  Ahead nothing;
  if (bias) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < b.columns; j += kLanes) store(c.data + i * c.ld + j, load(bias + j));
  }
  for (int64_t s = 0; s < b.columns; s += pre_norm::kStrip) {
    const int64_t width = b.width(s);
    for (int64_t k = 0; k < b.depth; k += pre_norm::kDepth) {
      product({.c = c.data + s,
               .ldc = c.ld,
               .a = a.data + k,
               .lda = a.ld,
               .b = b.data + s * b.depth + k * width,
               .ldb = width,
               .rows = rows,
               .columns = width,
               .depth = b.depth - k < pre_norm::kDepth ? b.depth - k : pre_norm::kDepth,
               .accumulate = bias || k > 0},
              nothing);
    }
  }
}

// out (columns of a, columns of b) += the transpose of a (rows, ...) times b (rows, ...).
inline void add_outer(float* out, const Matrix& a, int64_t columns_of_a, const Matrix& b, int64_t columns_of_b,
                      int64_t rows, bool first) {
  Ahead nothing;
  for (int64_t s = 0; s < columns_of_b; s += pre_norm::kStrip)
    product_transposed({.c = out + s,
                        .ldc = columns_of_b,
                        .a = a.data,
                        .lda = a.ld,
                        .b = b.data + s,
                        .ldb = b.ld,
                        .rows = columns_of_a,
                        .columns = columns_of_b - s < pre_norm::kStrip ? columns_of_b - s : pre_norm::kStrip,
                        .depth = rows,
                        .accumulate = !first},
                       nothing);
}

// out (columns) += the sums of the columns of x.
inline void add_columns(float* out, const Matrix& x, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    VecF sum = load(out + j);
    for (int64_t i = 0; i < rows; ++i) sum += load(x.data + i * x.ld + j);
    store(out + j, sum);
  }
}

inline void add(float* out, const float* x, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) store(out + j, load(out + j) + load(x + j));
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
