#include "bias_gelu/bias_gelu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/block_sums.h"
#include "common/operands.h"
#include "common/outputs.h"

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "bias_gelu";
constexpr int64_t kMinRowsPerBlock = 8;

Tensor forward(const Tensor& x_in, const Tensor& bias_in, bool tanh) {
  const int64_t width = x_in.size(-1), rows = x_in.numel() / width;
  const Tensor x = packed(x_in), bias = parameter(bias_in);
  STD_TORCH_CHECK(bias.numel() == width, "bias_gelu: bias width");
  Tensor y = empty_output(x);
  const BiasGeluForward args{
      .x = x.const_data_ptr(),
      .bias = bias.const_data_ptr<float>(),
      .y = y.mutable_data_ptr(),
      .width = width,
      .tanh = tanh,
      .type = element_of(x, kOp),
  };
  parallel_items(FASTSSL_KERNEL(bias_gelu_forward), args, rows, width);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& bias_in, bool tanh) {
  const int64_t width = x_in.size(-1), rows = x_in.numel() / width;
  const Tensor grad_y = packed(grad_y_in), x = packed(x_in), bias = parameter(bias_in);
  STD_TORCH_CHECK(grad_y.numel() == x.numel() && grad_y.scalar_type() == x.scalar_type() && bias.numel() == width,
                  "bias_gelu: operands of the backward");
  Tensor grad_x = empty_output(x);
  const RowBlocks blocks(rows, kMinRowsPerBlock);
  Tensor partials = torch::stable::new_empty(x, {blocks.count, width}, ScalarType::Float);
  Tensor grad_bias = torch::stable::new_empty(x, {width}, ScalarType::Float);
  float* partial = partials.mutable_data_ptr<float>();
  const BiasGeluBackward args{
      .grad_y = grad_y.const_data_ptr(),
      .x = x.const_data_ptr(),
      .bias = bias.const_data_ptr<float>(),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_bias = partial,
      .rows = rows,
      .rows_per_block = blocks.rows_per_block,
      .width = width,
      .tanh = tanh,
      .type = element_of(x, kOp),
  };
  parallel_items(FASTSSL_KERNEL(bias_gelu_backward), args, blocks.count, blocks.rows_per_block * width);
  const auto sum_kernel = FASTSSL_KERNEL(sum_blocks);
  torch::stable::parallel_for(0, width, kGrain / kMaxRowBlocks, [&](int64_t begin, int64_t end) {
    sum_kernel(partial, blocks.count, width, false, grad_bias.mutable_data_ptr<float>(), begin, end);
  });
  return {grad_x, grad_bias};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("bias_gelu_forward", TORCH_BOX(&fastssl::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&fastssl::backward));
}
