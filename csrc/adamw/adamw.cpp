#include "adamw/adamw.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRange = 1 << 16;  // numbers that are worth a thread

float* floats(const Tensor& tensor, int64_t size) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == size,
                  "adamw_: tensors must be contiguous, float32 and of equal sizes");
  return tensor.mutable_data_ptr<float>();
}

AdamWStep step_of(int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                  double gradient_factor) {
  return {.decay = static_cast<float>(1.0 - lr * weight_decay),
          .step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, step))),
          .inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step))),
          .beta1 = static_cast<float>(beta1),
          .beta2 = static_cast<float>(beta2),
          .eps = static_cast<float>(eps),
          .gradient_factor = static_cast<float>(gradient_factor)};
}

void adamw_(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> exp_avgs,
            std::vector<Tensor> exp_avg_sqs, int64_t step, double lr, double beta1, double beta2, double eps,
            double weight_decay, double gradient_factor) {
  const size_t count = parameters.size();
  STD_TORCH_CHECK(gradients.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count,
                  "adamw_: lists of unequal lengths");
  const AdamWStep shared = step_of(step, lr, beta1, beta2, eps, weight_decay, gradient_factor);
  std::vector<AdamWRange> ranges;
  for (size_t i = 0; i < count; ++i) {
    const int64_t size = parameters[i].numel();
    const AdamWRange whole{floats(parameters[i], size), floats(gradients[i], size), floats(exp_avgs[i], size),
                           floats(exp_avg_sqs[i], size), size};
    for (int64_t at = 0; at < size; at += kRange)
      ranges.push_back({whole.parameter + at, whole.gradient + at, whole.exp_avg + at, whole.exp_avg_sq + at,
                        std::min(kRange, size - at)});
  }
  const auto kernel = FASTSSL_KERNEL(adamw);
  torch::stable::parallel_for(0, static_cast<int64_t>(ranges.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel(shared, ranges[i]);
  });
}

// The gradient is zero but for `values` at `rows`; `touched` tells which rows ever had one.
void adamw_rows_(Tensor parameter, const Tensor& rows, const Tensor& values, Tensor exp_avg, Tensor exp_avg_sq,
                 Tensor touched, int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                 double gradient_factor) {
  const int64_t count = parameter.size(0), size = parameter.numel(), width = count == 0 ? 0 : size / count;
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Long && rows.is_contiguous() &&
                      values.numel() == rows.numel() * width && touched.scalar_type() == ScalarType::Bool &&
                      touched.is_contiguous() && touched.numel() == count,
                  "adamw_rows_: rows, values or touched");
  const AdamWStep shared = step_of(step, lr, beta1, beta2, eps, weight_decay, gradient_factor);
  float *const p = floats(parameter, size), *const m = floats(exp_avg, size), *const v = floats(exp_avg_sq, size);
  const float* const gradient = floats(values, values.numel());
  bool* const was_touched = touched.mutable_data_ptr<bool>();
  std::vector<const float*> gradient_of(count, nullptr);
  for (int64_t i = 0; i < rows.numel(); ++i) {
    const int64_t row = rows.const_data_ptr<int64_t>()[i];
    STD_TORCH_CHECK(row >= 0 && row < count && !gradient_of[row], "adamw_rows_: rows must differ and exist");
    gradient_of[row] = gradient + i * width;
    was_touched[row] = true;
  }
  const auto update = FASTSSL_KERNEL(adamw);
  const auto scale = FASTSSL_KERNEL(scale_values);
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kRange / std::max<int64_t>(width, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t row = begin; row < end; ++row) {
                                  const int64_t at = row * width;
                                  if (was_touched[row])
                                    update(shared, {p + at, gradient_of[row], m + at, v + at, width});
                                  else if (shared.decay != 1.0f)
                                    scale(p + at, width, shared.decay);
                                }
                              });
}

// The sum of all squares, 0-d and float64: short sums in float32, these in float64, in the same order always.
Tensor sum_of_squares_of(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "sum_of_squares: no tensors");
  struct Block {
    const float* values;
    int64_t size;
  };
  std::vector<Block> blocks;
  for (const Tensor& tensor : tensors) {
    const int64_t size = tensor.numel();
    const float* const values = floats(tensor, size);
    for (int64_t at = 0; at < size; at += kSquaresBlock)
      blocks.push_back({values + at, std::min(kSquaresBlock, size - at)});
  }
  std::vector<float> sums(blocks.size());
  const auto kernel = FASTSSL_KERNEL(sum_of_squares);
  torch::stable::parallel_for(0, static_cast<int64_t>(blocks.size()), kRange / kSquaresBlock,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  sums[i] = kernel(blocks[i].values, blocks[i].size);
                              });
  double total = 0.0;
  for (const float sum : sums) total += sum;
  Tensor result = torch::stable::new_empty(tensors[0], {}, ScalarType::Double);
  *result.mutable_data_ptr<double>() = total;
  return result;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("adamw_", TORCH_BOX(&fastssl::adamw_));
  m.impl("adamw_rows_", TORCH_BOX(&fastssl::adamw_rows_));
  m.impl("sum_of_squares", TORCH_BOX(&fastssl::sum_of_squares_of));
}
