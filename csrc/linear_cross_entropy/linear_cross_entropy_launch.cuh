// Which softmax cross-entropy kernel runs: a matter of the row's size in memory and of the device alone.
#pragma once

#include "common/element.h"
#include "cuda/column_sums.cuh"
#include "linear_cross_entropy/linear_cross_entropy_kernels.cuh"

namespace fastssl::cuda {

// Calls body with a value of the type of the logits.
template <class Body>
void with_logit_type(Element logit, Body body) {
  if (logit == Element::float32)
    body(float{});
  else if (logit == Element::bfloat16)
    body(BFloat16{});
  else
    body(Half{});
}

inline void launch_softmax_cross_entropy(const SoftmaxCrossEntropy& a, Element logit, const DeviceLimits& limits,
                                         cudaStream_t stream) {
  with_logit_type(logit, [&](auto value) {
    using Logit = decltype(value);
    constexpr int kReserved = 2048;  // for reductions, and for what the system takes of each block
    const int64_t vectors = (a.classes + kVector - 1) / kVector;
    const int64_t row_bytes = vectors * static_cast<int64_t>(sizeof(Packed<Logit>));
    const dim3 blocks(static_cast<unsigned>(a.rows));
    const auto start = [&](auto* kernel, int threads, int64_t shared_bytes) {
      launch(kernel, blocks, dim3(static_cast<unsigned>(threads)), static_cast<size_t>(shared_bytes), stream, a);
    };
    // Without a gradient each logit is used once; there is no reason to keep it.
    const bool in_shared = a.with_gradient && row_bytes + kReserved <= limits.shared_bytes_per_block;
    const bool alone = in_shared && 2 * (row_bytes + kReserved) > limits.shared_bytes_per_multiprocessor;
    if (!in_shared)
      start(softmax_cross_entropy<Logit, 512, false>, 512, 0);
    else if (vectors <= 256)
      start(softmax_cross_entropy<Logit, 128, true>, 128, row_bytes);
    else if (!alone)
      start(softmax_cross_entropy<Logit, 512, true>, 512, row_bytes);
    else
      start(softmax_cross_entropy<Logit, 1024, true>, 1024, row_bytes);
  });
}

}  // namespace fastssl::cuda
