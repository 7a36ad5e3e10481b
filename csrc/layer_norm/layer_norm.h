// What the layer norm kernels of every instruction set take (fastssl/ops/layer_norm/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dropout.h"
#include "common/element.h"

namespace fastssl {

// y = (sum - mean) * rstd * weight + bias with sum = residual + dropout(x), rounded to its dtype.
struct LayerNormForward {
  const void* x;         // (rows, width) of x_type
  const void* residual;  // (rows, width) of sum_type, or null
  const float* weight;   // (width)
  const float* bias;     // (width), or null
  void* y;               // (rows, width) of x_type
  void* sum;             // (rows, width) of sum_type, or null where it is x
  float* mean;           // (rows)
  float* rstd;           // (rows)
  int64_t width;
  float eps;
  Element x_type;
  Element sum_type;
  Dropout dropout;
  int64_t first_row = 0;  // the number of row 0 in the dropout's mask
};

struct LayerNormBackward {
  const void* grad_y;    // (rows, width) of x_type, or null for zeros
  const void* grad_sum;  // (rows, width) of sum_type, or null
  const void* sum;       // (rows, width) of sum_type
  const float* weight;   // (width)
  const float* mean;     // (rows)
  const float* rstd;     // (rows)
  void* grad_x;          // (rows, width) of x_type
  void* grad_residual;   // (rows, width) of sum_type, or null
  float* grad_weight;    // (blocks, width): one partial sum a block of rows
  float* grad_bias;      // (blocks, width)
  int64_t rows;
  int64_t rows_per_block;
  int64_t width;
  Element x_type;
  Element sum_type;
  Dropout dropout;
  int64_t first_row = 0;  // the number of row 0 in the dropout's mask
};

// Rows [begin, end).
FASTSSL_DECLARE_KERNEL(void, layer_norm_forward, const LayerNormForward&, int64_t begin, int64_t end)
// Blocks of rows [begin, end).
FASTSSL_DECLARE_KERNEL(void, layer_norm_backward, const LayerNormBackward&, int64_t begin, int64_t end)

}  // namespace fastssl
