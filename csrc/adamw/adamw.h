// What the kernels of the AdamW update take (fastssl/ops/adamw/README.md). All numbers are float32.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {

// What all tensors of an update share.
struct AdamWStep {
  float decay;            // factor of the parameter: 1 - lr weight_decay
  float step_size;        // lr / (1 - beta1^step)
  float inverse_root;     // 1 / sqrt(1 - beta2^step)
  float beta1, beta2;     // of the two averages
  float eps;              // added to the root of the second one
  float gradient_factor;  // of the gradient, before anything else
};

// Neighbouring numbers of one parameter.
struct AdamWRange {
  float* parameter;
  const float* gradient;  // null: zero everywhere
  float *exp_avg, *exp_avg_sq;
  int64_t size;
};

FASTSSL_DECLARE_KERNEL(void, adamw, const AdamWStep&, const AdamWRange&)
// values *= factor
FASTSSL_DECLARE_KERNEL(void, scale_values, float* values, int64_t size, float factor)
// The sum of squares of at most kSquaresBlock numbers.
inline constexpr int64_t kSquaresBlock = 16384;
FASTSSL_DECLARE_KERNEL(float, sum_of_squares, const float* values, int64_t size)

}  // namespace fastssl
