#include "common/product.h"

namespace fastssl::FASTSSL_ISA {

namespace {

// Accumulators of a block of the product fill the register file but for the operands: the fewer vectors, the more rows.
constexpr int kBlockVectors = kLanes == 16 ? 4 : 2;
constexpr int kMostRows = 12;
constexpr int block_rows(int64_t vectors) {
  const int64_t rows = kBlockVectors * 6 / vectors;
  return rows < kMostRows ? static_cast<int>(rows) : kMostRows;
}

constexpr int64_t kStep = 8;  // of the depth, between two steps ahead

template <bool kTransposed, int kRows, int kVectors>
void product_block(const Product& o, Ahead& ahead) {
  VecF sum[kRows][kVectors] = {};
  const float* a = o.a;
  const float* b = o.b;
  const int64_t lda = o.lda;
  for (int64_t left = o.depth; left > 0; left -= kStep) {
    const int64_t count = left < kStep ? left : kStep;
    ahead.step(count * kRows * kVectors);
    for (int64_t k = 0; k < count; ++k) {
      VecF row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const VecF x = broadcast(kTransposed ? a[r] : a[r * lda]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] += x * row[v];
      }
      a += kTransposed ? lda : 1;
      b += o.ldb;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float* c = o.c + r * o.ldc;
    const float factor = o.factors ? o.factors[r] : o.factor;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const VecF old = o.accumulate ? load(c + v * kLanes) : VecF{};
      store(c + v * kLanes, o.accumulate ? old + sum[r][v] : sum[r][v] * factor);
    }
  }
}

// Multiplies a block of 1 .. kRows rows.
template <bool kTransposed, int kVectors, int kRows = block_rows(kVectors)>
void product_rows(int64_t rows, const Product& o, Ahead& ahead) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return product_rows<kTransposed, kVectors, kRows - 1>(rows, o, ahead);
  }
  product_block<kTransposed, kRows, kVectors>(o, ahead);
}

// Multiplies a strip of columns, its rows divided evenly into blocks.
template <bool kTransposed, int kVectors>
void product_strip(Product o, Ahead& ahead) {
  const int64_t num_blocks = (o.rows + block_rows(kVectors) - 1) / block_rows(kVectors);
  const int64_t short_rows = o.rows / num_blocks, num_long = o.rows % num_blocks;
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t rows = short_rows + (i < num_long);
    product_rows<kTransposed, kVectors>(rows, o, ahead);
    o.c += rows * o.ldc;
    o.a += kTransposed ? rows : rows * o.lda;
    if (o.factors) o.factors += rows;
  }
}

template <bool kTransposed>
void product_all(Product o, Ahead& ahead) {
  if (o.rows == 0) return;
  for (int64_t left = o.columns / kLanes; left > 0; left -= kBlockVectors) {
    if (left == 1)
      product_strip<kTransposed, 1>(o, ahead);
    else if (left == 2 || kBlockVectors == 2)
      product_strip<kTransposed, 2>(o, ahead);
    else if (left == 3)
      product_strip<kTransposed, kBlockVectors == 4 ? 3 : 2>(o, ahead);
    else
      product_strip<kTransposed, kBlockVectors>(o, ahead);
    o.c += kBlockVectors * kLanes;
    o.b += kBlockVectors * kLanes;
  }
}

// Which lanes two vectors swap at distance w, as masks of __builtin_shuffle: one step of a square's transposition.
template <int w>
FASTSSL_INLINE void exchange(VecF (&x)[kLanes]) {
  VecU low, high;
  for (int l = 0; l < kLanes; ++l) {
    low[l] = l & w ? kLanes + l - w : l;
    high[l] = l & w ? kLanes + l : l + w;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & w) continue;
    const VecF a = x[i], b = x[i + w];
    x[i] = __builtin_shuffle(a, b, low);
    x[i + w] = __builtin_shuffle(a, b, high);
  }
}

template <bool kAdd>
FASTSSL_INLINE void transpose_square(float* out, int64_t ld_out, const float* in, int64_t ld_in, float factor) {
  VecF x[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) x[i] = load(in + i * ld_in);
  exchange<1>(x);
  exchange<2>(x);
  if constexpr (kLanes >= 8) exchange<4>(x);
  if constexpr (kLanes >= 16) exchange<8>(x);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    store(out + i * ld_out, kAdd ? load(out + i * ld_out) + finite_product(x[i], factor) : x[i]);
}

}  // namespace

void product(const Product& p, Ahead& ahead) {
  product_all<false>(p, ahead);
}

void product_transposed(const Product& p, Ahead& ahead) {
  product_all<true>(p, ahead);
}

void transpose(float* out, const float* in, int64_t ld_in, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes)
      transpose_square<false>(out + j * rows + i, rows, in + i * ld_in + j, ld_in, 1.0f);
}

void transpose_add(float* out, int64_t ld_out, const float* in, int64_t ld_in, int64_t rows, int64_t columns,
                   float factor) {
  for (int64_t j = 0; j < columns; j += kLanes)
    for (int64_t i = 0; i < rows; i += kLanes)
      transpose_square<true>(out + j * ld_out + i, ld_out, in + i * ld_in + j, ld_in, factor);
}

}  // namespace fastssl::FASTSSL_ISA
