// What the bias + GELU kernels of every instruction set take (fastssl/ops/bias_gelu/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/element.h"

namespace fastssl {

// y = gelu(x + bias).
struct BiasGeluForward {
  const void* x;      // (rows, width)
  const float* bias;  // (width)
  void* y;            // (rows, width)
  int64_t width;
  bool tanh;  // the tanh approximation instead of the normal distribution function
  Element type;
};

struct BiasGeluBackward {
  const void* grad_y;  // (rows, width)
  const void* x;       // (rows, width)
  const float* bias;   // (width)
  void* grad_x;        // (rows, width)
  float* grad_bias;    // (blocks, width): one partial sum a block of rows
  int64_t rows;
  int64_t rows_per_block;
  int64_t width;
  bool tanh;
  Element type;
};

// Rows [begin, end).
FASTSSL_DECLARE_KERNEL(void, bias_gelu_forward, const BiasGeluForward&, int64_t begin, int64_t end)
// Blocks of rows [begin, end).
FASTSSL_DECLARE_KERNEL(void, bias_gelu_backward, const BiasGeluBackward&, int64_t begin, int64_t end)

}  // namespace fastssl
