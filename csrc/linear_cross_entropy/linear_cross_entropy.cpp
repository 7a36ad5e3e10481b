#include "linear_cross_entropy/linear_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>

#include "common/block_sums.h"

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 16384;

void check_targets(const Tensor& targets, int64_t classes) {
  const int64_t* target = targets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.numel(); ++i)
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < classes, "linear_cross_entropy: the target of labelled row ", i,
                    " is ", target[i], ", expected 0 <= target < V = ", classes);
}

template <class T>
T* checked(const Tensor& tensor, int64_t size) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == size, "softmax_cross_entropy_: layout");
  return tensor.mutable_data_ptr<T>();
}

void softmax_cross_entropy_(Tensor logits, const std::optional<Tensor>& bias, const Tensor& targets,
                            const std::optional<Tensor>& row_grads, double label_smoothing, double z_loss,
                            double softcap, bool with_gradient, Tensor losses, Tensor lse, Tensor correct,
                            const std::optional<Tensor>& grad_bias, bool accumulate) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  check_targets(targets, classes);
  STD_TORCH_CHECK(logits.is_contiguous() &&
                      (logits.scalar_type() == ScalarType::Float || logits.scalar_type() == ScalarType::BFloat16),
                  "softmax_cross_entropy_: logits");
  const int64_t rows_per_block = std::max<int64_t>(1, (rows + kMaxRowBlocks - 1) / kMaxRowBlocks);
  const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  const bool sums_bias = with_gradient && grad_bias;
  Tensor partials = torch::stable::new_empty(losses, {sums_bias ? blocks * classes : 0});
  const SoftmaxCrossEntropy args{
      .logits = logits.mutable_data_ptr(),
      .bias = bias ? checked<float>(*bias, classes) : nullptr,
      .targets = checked<int64_t>(targets, rows),
      .row_grads = row_grads ? checked<float>(*row_grads, rows) : nullptr,
      .losses = checked<float>(losses, rows),
      .lse = checked<float>(lse, rows),
      .correct = checked<bool>(correct, rows),
      .grad_bias = sums_bias ? partials.mutable_data_ptr<float>() : nullptr,
      .rows = rows,
      .rows_per_block = rows_per_block,
      .classes = classes,
      .label_smoothing = static_cast<float>(label_smoothing),
      .z_loss = static_cast<float>(z_loss),
      .softcap = static_cast<float>(softcap),
      .bfloat16_logits = logits.scalar_type() == ScalarType::BFloat16,
      .with_gradient = with_gradient,
  };
  const auto kernel = FASTSSL_KERNEL(softmax_cross_entropy);
  const int64_t grain = std::max<int64_t>(1, kGrain / (rows_per_block * classes));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  if (!sums_bias) return;
  float* total = checked<float>(*grad_bias, classes);
  const auto sum_kernel = FASTSSL_KERNEL(sum_blocks);
  torch::stable::parallel_for(0, classes, kGrain / kMaxRowBlocks, [&](int64_t begin, int64_t end) {
    sum_kernel(args.grad_bias, blocks, classes, accumulate, total, begin, end);
  });
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("softmax_cross_entropy_", TORCH_BOX(&fastssl::softmax_cross_entropy_));
}
