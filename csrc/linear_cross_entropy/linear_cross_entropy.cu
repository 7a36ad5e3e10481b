// Softmax cross-entropy for CUDA tensors; linear_cross_entropy.cpp is its twin for CPU tensors.
#include <limits>
#include <optional>

#include "cuda/scale.cuh"
#include "cuda/tensors.h"
#include "linear_cross_entropy/linear_cross_entropy_launch.cuh"

namespace fastssl::cuda {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "softmax_cross_entropy_";

template <class T>
T* checked(const Tensor& tensor, int64_t size) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == size, "softmax_cross_entropy_: layout");
  return tensor.mutable_data_ptr<T>();
}

// The rows of logits may lie apart: with a stride of a multiple of 16 bytes, all of them are read and written in whole
// vectors. A target outside [0, classes), which the host cannot see without waiting, gives NaN.
void softmax_cross_entropy_(Tensor logits, const std::optional<Tensor>& bias, const Tensor& targets,
                            const std::optional<Tensor>& row_grads, double label_smoothing, double z_loss,
                            double softcap, bool with_gradient, Tensor losses, Tensor lse, Tensor correct,
                            const std::optional<Tensor>& grad_bias, bool accumulate) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes > 0 && classes <= std::numeric_limits<int>::max() / 2, "softmax_cross_entropy_: classes");
  STD_TORCH_CHECK((logits.stride(1) == 1 || classes == 1) && (logits.stride(0) >= classes || rows <= 1),
                  "softmax_cross_entropy_: layout of the logits");
  const Device device(logits);
  const Element logit = element_of(logits, kOp);
  const SoftmaxCrossEntropy args{
      .logits = logits.mutable_data_ptr(),
      .row_stride = logits.stride(0),
      .bias = bias ? checked<float>(*bias, classes) : nullptr,
      .targets = checked<int64_t>(targets, rows),
      .row_grads = row_grads ? checked<float>(*row_grads, rows) : nullptr,
      .losses = checked<float>(losses, rows),
      .lse = checked<float>(lse, rows),
      .correct = checked<bool>(correct, rows),
      .rows = rows,
      .classes = static_cast<int>(classes),
      .label_smoothing = static_cast<float>(label_smoothing),
      .z_loss = static_cast<float>(z_loss),
      .softcap = static_cast<float>(softcap),
      .with_gradient = with_gradient,
  };
  launch_softmax_cross_entropy(args, logit, device.limits, device.stream);
  if (!with_gradient || !grad_bias) return;
  float* total = checked<float>(*grad_bias, classes);
  const ColumnSumBlocks blocks(rows);
  Tensor partials = empty_output(losses, {blocks.count, classes}, losses.scalar_type());
  with_logit_type(logit, [&](auto value) {
    launch_column_sums(static_cast<const decltype(value)*>(args.logits), rows, args.row_stride, args.classes, blocks,
                       partials.mutable_data_ptr<float>(), accumulate, total, device.stream);
  });
}

void scale_(Tensor x, const Tensor& factor) {
  STD_TORCH_CHECK(x.is_contiguous(), "scale_: layout");
  const Device device(x);
  const float* by = checked<float>(factor, 1);
  with_logit_type(element_of(x, "scale_"), [&](auto value) {
    launch_scale(static_cast<decltype(value)*>(x.mutable_data_ptr()), x.numel(), by, device.limits, device.stream);
  });
}

}  // namespace
}  // namespace fastssl::cuda

STABLE_TORCH_LIBRARY_IMPL(fastssl, FASTSSL_GPU, m) {
  m.impl("softmax_cross_entropy_", TORCH_BOX(&fastssl::cuda::softmax_cross_entropy_));
  m.impl("scale_", TORCH_BOX(&fastssl::cuda::scale_));
}
