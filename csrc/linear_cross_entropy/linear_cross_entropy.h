// What the softmax cross-entropy kernels of every instruction set take (fastssl/ops/linear_cross_entropy/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {

// One chunk of rows. With l = logits + bias, or softcap * tanh((logits + bias) / softcap):
// loss = lse - (1 - label_smoothing) * l[target] - label_smoothing * mean(l) + z_loss * lse^2.
struct SoftmaxCrossEntropy {
  void* logits;            // (rows, classes): becomes the gradient of row_grads . losses, or scratch without gradient
  const float* bias;       // (classes), or null
  const int64_t* targets;  // (rows), each in [0, classes)
  const float* row_grads;  // (rows), or null for ones
  float* losses;           // (rows)
  float* lse;              // (rows)
  bool* correct;           // (rows): the target is the first largest logit
  float* grad_bias;        // (blocks, classes): one partial sum a block of rows, or null
  int64_t rows;
  int64_t rows_per_block;
  int64_t classes;
  float label_smoothing;
  float z_loss;
  float softcap;         // 0: none
  bool bfloat16_logits;  // else float32
  bool with_gradient;
};

// Blocks of rows [begin, end).
FASTSSL_DECLARE_KERNEL(void, softmax_cross_entropy, const SoftmaxCrossEntropy&, int64_t begin, int64_t end)

}  // namespace fastssl
