#include "layer_norm/layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/block_sums.h"
#include "common/operands.h"
#include "common/outputs.h"

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "layer_norm";
constexpr int64_t kMinRowsPerBlock = 8;

Tensor nothing(const Tensor& like) {
  return torch::stable::new_empty(like, {0});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x_in, const Tensor& weight_in,
                                                   const std::optional<Tensor>& bias_in,
                                                   const std::optional<Tensor>& residual_in, double eps,
                                                   int64_t dropout_threshold, const std::optional<Tensor>& seed,
                                                   bool with_sum) {
  const int64_t width = x_in.size(-1), rows = x_in.numel() / width;
  const Tensor x = packed(x_in), weight = parameter(weight_in);
  const std::optional<Tensor> residual = packed(residual_in), bias = parameter(bias_in);
  const Tensor& sum_like = residual ? *residual : x;
  STD_TORCH_CHECK(weight.numel() == width && (!bias || bias->numel() == width), "layer_norm: parameter width");
  STD_TORCH_CHECK(!residual || residual->numel() == x.numel(), "layer_norm: residual shape");
  STD_TORCH_CHECK(sum_like.scalar_type() == x.scalar_type() || sum_like.scalar_type() == ScalarType::Float,
                  "layer_norm: residual dtype");
  const bool changed = residual || dropout_threshold;
  Tensor y = empty_output(x);
  Tensor sum = changed ? empty_output(sum_like) : nothing(sum_like);
  Tensor mean = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  const LayerNormForward args{
      .x = x.const_data_ptr(),
      .residual = data(residual),
      .weight = weight.const_data_ptr<float>(),
      .bias = static_cast<const float*>(data(bias)),
      .y = y.mutable_data_ptr(),
      .sum = changed ? sum.mutable_data_ptr() : nullptr,
      .mean = mean.mutable_data_ptr<float>(),
      .rstd = rstd.mutable_data_ptr<float>(),
      .width = width,
      .eps = static_cast<float>(eps),
      .x_type = element_of(x, kOp),
      .sum_type = element_of(sum_like, kOp),
      .dropout = dropout_of(dropout_threshold, seed, kOp),
  };
  parallel_items(FASTSSL_KERNEL(layer_norm_forward), args, rows, width);
  // The kernel forms a row where it is stored.
  return {y, with_sum ? sum : nothing(sum_like), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_y_in,
                                                    const std::optional<Tensor>& grad_sum_in, const Tensor& sum_in,
                                                    const Tensor& weight_in, const Tensor& mean, const Tensor& rstd,
                                                    int64_t dropout_threshold, const std::optional<Tensor>& seed,
                                                    bool residual_apart) {
  const int64_t width = sum_in.size(-1), rows = sum_in.numel() / width;
  const Tensor sum = packed(sum_in), weight = parameter(weight_in);
  const std::optional<Tensor> grad_y = packed(grad_y_in), grad_sum = packed(grad_sum_in);
  STD_TORCH_CHECK((!grad_y || grad_y->numel() == sum.numel()) && mean.numel() == rows && rstd.numel() == rows,
                  "layer_norm: shapes of the backward");
  STD_TORCH_CHECK(!grad_sum || grad_sum->scalar_type() == sum.scalar_type(), "layer_norm: dtype of the sum's gradient");
  const Tensor& x_like = grad_y ? *grad_y : sum;
  Tensor grad_x = empty_output(x_like);
  Tensor grad_residual = residual_apart ? empty_output(sum) : nothing(sum);
  const RowBlocks blocks(rows, kMinRowsPerBlock);
  Tensor partials = torch::stable::new_empty(mean, {2, blocks.count, width});
  Tensor grad_weight = torch::stable::new_empty(mean, {width});
  Tensor grad_bias = torch::stable::new_empty(mean, {width});
  float* partial = partials.mutable_data_ptr<float>();
  const LayerNormBackward args{
      .grad_y = data(grad_y),
      .grad_sum = data(grad_sum),
      .sum = sum.const_data_ptr(),
      .weight = weight.const_data_ptr<float>(),
      .mean = mean.const_data_ptr<float>(),
      .rstd = rstd.const_data_ptr<float>(),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_residual = residual_apart ? grad_residual.mutable_data_ptr() : nullptr,
      .grad_weight = partial,
      .grad_bias = partial + blocks.count * width,
      .rows = rows,
      .rows_per_block = blocks.rows_per_block,
      .width = width,
      .x_type = element_of(x_like, kOp),
      .sum_type = element_of(sum, kOp),
      .dropout = dropout_of(dropout_threshold, seed, kOp),
  };
  parallel_items(FASTSSL_KERNEL(layer_norm_backward), args, blocks.count, blocks.rows_per_block * width);
  const auto sum_kernel = FASTSSL_KERNEL(sum_blocks);
  torch::stable::parallel_for(0, width, kGrain / kMaxRowBlocks, [&](int64_t begin, int64_t end) {
    sum_kernel(partial, blocks.count, width, false, grad_weight.mutable_data_ptr<float>(), begin, end);
    sum_kernel(partial + blocks.count * width, blocks.count, width, false, grad_bias.mutable_data_ptr<float>(), begin,
               end);
  });
  return {grad_x, grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&fastssl::forward));
  m.impl("layer_norm_backward", TORCH_BOX(&fastssl::backward));
}
