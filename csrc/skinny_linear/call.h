// A linear map of few rows from tensors, for the operators that are made of it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "skinny_linear/skinny_linear.h"

namespace fastssl::skinny {

// The map of a weight (outputs, inputs) float32 or bfloat16, or one packed with its scales; x, y, rows and residual are
// left to be set. Parameters must be packed and float32, and outlive the call.
Call call_of(const torch::stable::Tensor& weight, const std::optional<torch::stable::Tensor>& scale,
             const std::optional<torch::stable::Tensor>& bias, int64_t inputs, int64_t activation,
             int64_t instructions);

std::optional<Norm> norm_of(const std::optional<torch::stable::Tensor>& weight,
                            const std::optional<torch::stable::Tensor>& bias, double eps, bool centred, int64_t inputs);

// Normalises and rounds x where that is wanted, and multiplies.
void run(Call& call, const std::optional<Norm>& norm);

}  // namespace fastssl::skinny
