// What the kernels of the 8-bit linear map take (fastssl/ops/quantized_linear/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {

// y = activation((scale_x (q_x . q_w^T) + centre_x sum(q_w)) scale_w + bias), with x = scale_x q_x + centre_x by rows.
struct QuantizedLinear {
  const void* x;              // (rows, inputs)
  const uint8_t* weight;      // (outputs / 16, inputs / 4, 16, 4), both rounded up: the 8-bit weights plus 128
  const float* weight_scale;  // (outputs)
  const float* weight_sum;    // (outputs): the sum of a row of 8-bit weights
  const float* bias;          // (outputs), or null
  void* y;                    // (rows, outputs), dtype of x
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  bool bfloat16;  // else float32
  bool gelu;
  bool vnni;  // use the dot-product instructions of AVX-512
};

inline constexpr int64_t kPanelColumns = 16;     // columns of a panel of packed weights
inline constexpr int64_t kColumnAlignment = 32;  // outputs are padded to a multiple of it: the widest tile
inline constexpr int64_t kRowAlignment = 4;      // rows of a block are padded to a multiple of it

// Bytes of the quantised rows of a block, which stand behind their scales, centres and corrections.
static inline int64_t quantized_row_bytes(int64_t inputs) {
  return (inputs + 3) / 4 * 4;
}
static inline int64_t quantized_linear_scratch_bytes(int64_t rows, int64_t inputs) {
  const int64_t padded_rows = (rows + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
  return padded_rows * (quantized_row_bytes(inputs) + static_cast<int64_t>(2 * sizeof(float) + sizeof(int32_t)));
}

// Rows [row_begin, row_end), columns [column_begin, column_end); column_begin is a multiple of kColumnAlignment.
FASTSSL_DECLARE_KERNEL(void, quantized_linear, const QuantizedLinear&, int64_t row_begin, int64_t row_end,
                       int64_t column_begin, int64_t column_end, int8_t* scratch)

}  // namespace fastssl
