// What the kernels of a pre-norm transformer block take (fastssl/ops/pre_norm_block/README.md).
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "common/cpu_capability.h"
#include "common/dropout.h"

namespace fastssl {
namespace pre_norm {

// Rows that go through the block together: what they need beside the weights stays in the L2 cache.
inline constexpr int64_t kRowsTogether = 64;
// Columns of a packed weight that stand together, and how many rows of it are multiplied at a time: half an L1 cache.
inline constexpr int64_t kStrip = 64;
inline constexpr int64_t kDepth = 128;
// Distance of a worker's own rows beyond their width: powers of two would share few sets of the caches.
inline constexpr int64_t kGap = 16;

struct Sizes {
  int64_t width;       // E
  int64_t heads;       // H
  int64_t key_heads;   // H_k
  int64_t head_width;  // D
  int64_t mlp_width;   // F

  int64_t attended() const {
    return heads * head_width;
  }
  int64_t qkv() const {
    return (heads + 2 * key_heads) * head_width;
  }
};

// Of a linear map: weight (outputs, inputs) and bias (outputs) or null.
template <class Number>
struct Map {
  Number* weight;
  Number* bias;
};

// Parameters, or their gradients, whose biases are then never null.
template <class Number>
struct Parameters {
  Map<Number> attention_norm, qkv, output, mlp_norm, up, down;
};

// Gradients of all parameters in one buffer, in the order of Parameters, weight before bias.
inline int64_t gradient_floats(const Sizes& s) {
  const int64_t weights = s.qkv() * s.width + s.width * s.attended() + 2 * s.width * s.mlp_width;
  return weights + 4 * s.width + s.qkv() + s.width + s.mlp_width + s.width;
}

// What both directions share. Tensors of rows are packed; element of a row times its width is where it begins.
struct Block {
  Sizes sizes;
  Parameters<const float> parameters;
  float attention_eps, mlp_eps;
  bool tanh;                       // the tanh approximation of GELU
  attention::Arguments attention;  // its options; no tensors
  Dropout addend_dropout, output_dropout;
  const float* cos;       // (N, D / 2): by how much queries and keys are turned; null: not at all
  const float* sin;       // (N, D / 2)
  int64_t rows;           // N
  const float* addend;    // (N, E)
  const float* residual;  // (N, E), or null
  float* stream;          // (N, E): residual + dropout(addend); null where that is the addend
  float* mean;            // (2, N): of the rows of both norms
  float* rstd;            // (2, N)
  float* qkv;             // (N, (H + 2 H_k) D)
  float* attended;        // (N, H D)
  float* lse;             // (H, N)
  float* inner_stream;    // (N, E): stream + dropout(what attention adds)
  float* up;              // (N, F), before bias and GELU
};

struct Forward : Block {
  float* out;  // (N, E)
};

struct Backward : Block {
  const float* grad_out;           // (N, E)
  const float* grad_inner_stream;  // (N, E), or null for zeros
  float* grad_addend;              // (N, E)
  float* grad_residual;            // (N, E)
};

// Neighbouring sequences, that one worker takes through the block one group after the other.
struct Share {
  const int32_t* begin_of_sequence;  // (B + 1)
  int64_t first, last;               // sequences [first, last)
  int64_t longest;                   // rows of a sequence
};

// Sequences [first, return) make a group, the fewest with kRowsTogether rows.
inline int64_t end_of_group(const Share& share, int64_t first) {
  int64_t end = first + 1;
  while (end < share.last && share.begin_of_sequence[end] - share.begin_of_sequence[first] < kRowsTogether) ++end;
  return end;
}

// Floats of memory that a worker needs.
int64_t forward_scratch(const Sizes& sizes, int64_t longest);
int64_t backward_scratch(const Sizes& sizes, int64_t longest);

}  // namespace pre_norm

FASTSSL_DECLARE_KERNEL(void, pre_norm_block_forward, const pre_norm::Forward&, const pre_norm::Share&, float* scratch)
// `gradients`: of the parameters, by these sequences alone; written.
FASTSSL_DECLARE_KERNEL(void, pre_norm_block_backward, const pre_norm::Backward&, const pre_norm::Share&,
                       const pre_norm::Parameters<float>& gradients, float* scratch)

}  // namespace fastssl
