// What the kernels of the linear map of few rows take (fastssl/ops/skinny_linear/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {
namespace skinny {

enum class Weight : int32_t { float32, bfloat16, int8 };

// As in fastssl/ops/skinny_linear/native.py.
enum class Activation : int64_t { none, gelu, gelu_tanh, silu, swiglu };

inline constexpr int64_t kRowGroup = 4;       // rows of a floating weight that are read at a time
inline constexpr int64_t kPanelColumns = 16;  // rows of an 8-bit weight that stand side by side
inline constexpr int64_t kRowPadding = 8;     // rows of x beside an 8-bit weight are padded to a multiple of it

// What multiplies bytes: products of 16 bits, AVX-512's dot products (VNNI), or tiles (AMX), which multiply bfloat16
// too.
enum class Instructions : int64_t { general, vnni, amx };

// Rows of x rounded to 16 bits, x = scale (256 high + low), as the 8-bit weights want them.
struct RoundedRows {
  int8_t* bytes;      // (rows padded, 2, stride): the high bytes of a row and its low ones
  float* scales;      // (rows)
  int32_t* sums;      // (rows, 2): of the high and of the low bytes
  int64_t row_bytes;  // inputs rounded up to a multiple of 4
  int64_t stride;     // an odd number of cache lines: sixteen rows do not meet in a few sets of the L1 cache

  int8_t* row(int64_t index) const {
    return bytes + index * 2 * stride;
  }
};

// Rows of x as sums of bfloat16 beside a weight of that type, for AMX: four rows together, their three parts side by
// side, two neighbours of a row in a word.
inline constexpr int64_t kParts = 3, kPartRows = 4;
inline constexpr int64_t kPartOutputs = 16;  // rows of the weight that are read at a time

static inline int64_t group_words(int64_t inputs) {
  return (inputs + 31) / 32 * 16 * kParts * kPartRows;
}

// y = activation(x W^T + bias) + residual.
struct Call {
  const float* x;             // (rows, inputs), normalised
  const void* weight;         // (outputs, inputs), or packed as in quantized_linear/quantized_linear.h
  const float* weight_scale;  // (outputs), of 8-bit weights
  const float* bias;          // (outputs), or null
  const float* residual;      // like y, or null
  float* products;            // (rows, outputs): y itself, but for gates
  float* y;                   // (rows, outputs), or half as many for gates
  RoundedRows rounded;        // for 8-bit weights
  const uint32_t* parts;      // for bfloat16 weights and AMX, else null
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  Weight format;
  Activation activation;
  Instructions instructions;
};

// A normalisation of the rows of x.
struct Norm {
  const float* weight;
  const float* bias;  // or null
  float eps;
  bool centred;  // layer norm, else RMS norm
};

}  // namespace skinny

FASTSSL_DECLARE_KERNEL(void, skinny_normalise, const skinny::Norm&, const float* x, int64_t rows, int64_t width,
                       float* out)
FASTSSL_DECLARE_KERNEL(void, skinny_round, const float* x, int64_t rows, int64_t width, const skinny::RoundedRows& out)
// Products of all rows with columns [begin, end): of a floating weight, and of an 8-bit one, from the start of a panel.
FASTSSL_DECLARE_KERNEL(void, skinny_products, const skinny::Call&, int64_t begin, int64_t end)
FASTSSL_DECLARE_KERNEL(void, skinny_products_int8, const skinny::Call&, int64_t begin, int64_t end)
// With AMX alone: x in parts, and the products of these with a bfloat16 weight; inputs are even, outputs at least 16.
FASTSSL_DECLARE_KERNEL(void, skinny_split, const float* x, int64_t rows, int64_t width, uint32_t* parts)
FASTSSL_DECLARE_KERNEL(void, skinny_products_bf16, const skinny::Call&, int64_t begin, int64_t end)
// Columns [begin, end) of y from the products.
FASTSSL_DECLARE_KERNEL(void, skinny_finish, const skinny::Call&, int64_t begin, int64_t end)

}  // namespace fastssl
