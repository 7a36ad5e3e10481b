// Layer norm for CUDA tensors; layer_norm.cpp is its twin for CPU tensors.
#include <limits>
#include <optional>
#include <tuple>

#include "cuda/tensors.h"
#include "layer_norm/layer_norm_launch.cuh"

namespace fastssl::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "layer_norm";

struct Parameters {
  Tensor weight;
  std::optional<Tensor> bias;
  bool are_float;

  // Both of the dtype of x, or both float32.
  Parameters(const Tensor& weight_in, const std::optional<Tensor>& bias_in, ScalarType x_type)
      : weight(packed(weight_in)), bias(packed(bias_in)) {
    are_float = weight.scalar_type() != x_type || (bias && bias->scalar_type() != x_type);
    if (!are_float) return;
    weight = parameter(weight);
    bias = parameter(bias);
  }
};

int checked_width(const Tensor& x) {
  const int64_t width = x.size(-1);
  STD_TORCH_CHECK(width > 0 && width <= std::numeric_limits<int>::max() / 2, "layer_norm: width");
  return static_cast<int>(width);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x_in, const Tensor& weight_in,
                                                   const std::optional<Tensor>& bias_in,
                                                   const std::optional<Tensor>& residual_in, double eps,
                                                   int64_t dropout_threshold, const std::optional<Tensor>& seed,
                                                   bool with_sum) {
  const int width = checked_width(x_in);
  const int64_t rows = x_in.numel() / width;
  const Device device(x_in);
  const Tensor x = packed(x_in);
  const std::optional<Tensor> residual = packed(residual_in);
  const Parameters parameters(weight_in, bias_in, x.scalar_type());
  const Tensor& sum_like = residual ? *residual : x;
  STD_TORCH_CHECK(weight_in.numel() == width && (!bias_in || bias_in->numel() == width), "layer_norm: parameter width");
  STD_TORCH_CHECK(!residual || residual->numel() == x.numel(), "layer_norm: residual shape");
  STD_TORCH_CHECK(sum_like.scalar_type() == x.scalar_type() || sum_like.scalar_type() == ScalarType::Float,
                  "layer_norm: residual dtype");
  Tensor y = empty_output(x);
  Tensor sum = nothing(sum_like);
  Tensor mean = empty_output(x, {rows}, ScalarType::Float);
  Tensor rstd = empty_output(x, {rows}, ScalarType::Float);
  LayerNormForward args{
      .x = x.const_data_ptr(),
      .residual = data(residual),
      .weight = parameters.weight.const_data_ptr(),
      .bias = data(parameters.bias),
      .y = y.mutable_data_ptr(),
      .sum = nullptr,
      .mean = mean.mutable_data_ptr<float>(),
      .rstd = rstd.mutable_data_ptr<float>(),
      .rows = rows,
      .width = width,
      .eps = static_cast<float>(eps),
      .float_parameters = parameters.are_float,
      .dropout = dropout_of(kOp, dropout_threshold, seed, x),
  };
  if (args.changed() && (with_sum || !layer_norm_forward_keeps_rows(args))) {
    sum = empty_output(sum_like);
    args.sum = sum.mutable_data_ptr();
  }
  launch_layer_norm_forward(args, element_of(x, kOp), element_of(sum_like, kOp), device.stream);
  return {y, with_sum ? sum : nothing(sum_like), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_y_in,
                                                    const std::optional<Tensor>& grad_sum_in, const Tensor& sum_in,
                                                    const Tensor& weight_in, const Tensor& mean, const Tensor& rstd,
                                                    int64_t dropout_threshold, const std::optional<Tensor>& seed,
                                                    bool residual_apart) {
  const int width = checked_width(sum_in);
  const int64_t rows = sum_in.numel() / width;
  const Device device(sum_in);
  const Tensor sum = packed(sum_in);
  const std::optional<Tensor> grad_y = packed(grad_y_in), grad_sum = packed(grad_sum_in);
  STD_TORCH_CHECK((!grad_y || grad_y->numel() == sum.numel()) && mean.numel() == rows && rstd.numel() == rows,
                  "layer_norm: shapes of the backward");
  STD_TORCH_CHECK(!grad_sum || grad_sum->scalar_type() == sum.scalar_type(), "layer_norm: dtype of the sum's gradient");
  const Tensor& x_like = grad_y ? *grad_y : sum;
  const Parameters parameters(weight_in, std::nullopt, x_like.scalar_type());
  Tensor grad_x = empty_output(x_like);
  Tensor grad_residual = residual_apart ? empty_output(sum) : nothing(sum);
  Tensor grad_weight = empty_output(mean, {width}, ScalarType::Float);
  Tensor grad_bias = empty_output(mean, {width}, ScalarType::Float);
  LayerNormBackward args{
      .grad_y = data(grad_y),
      .grad_sum = data(grad_sum),
      .sum = sum.const_data_ptr(),
      .weight = parameters.weight.const_data_ptr(),
      .mean = mean.const_data_ptr<float>(),
      .rstd = rstd.const_data_ptr<float>(),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_residual = residual_apart ? grad_residual.mutable_data_ptr() : nullptr,
      .partials = nullptr,
      .rows = rows,
      .width = width,
      .float_parameters = parameters.are_float,
      .stages = 0,
      .dropout = dropout_of(kOp, dropout_threshold, seed, sum),
  };
  const Element x_type = element_of(x_like, kOp), sum_type = element_of(sum, kOp);
  const BackwardPlan plan = plan_layer_norm_backward(args, x_type, sum_type, device.limits);
  Tensor partials = empty_output(mean, {2, plan.blocks, width}, ScalarType::Float);
  args.partials = partials.mutable_data_ptr<float>();
  launch_layer_norm_backward(args, plan, x_type, sum_type, grad_weight.mutable_data_ptr<float>(),
                             grad_bias.mutable_data_ptr<float>(), device.stream);
  return {grad_x, grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace fastssl::cuda

STABLE_TORCH_LIBRARY_IMPL(fastssl, FASTSSL_GPU, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&fastssl::cuda::forward));
  m.impl("layer_norm_backward", TORCH_BOX(&fastssl::cuda::backward));
}
