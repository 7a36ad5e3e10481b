// Attention to a cache from tensors, for the operators that are made of it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cached_attention/cached_attention.h"

namespace fastssl::cached {

// q, k, v and out are left to be set. Everything must outlive the call.
Call call_of(const torch::stable::Tensor& k_cache, const torch::stable::Tensor& v_cache,
             const std::optional<torch::stable::Tensor>& cos, const std::optional<torch::stable::Tensor>& sin,
             int64_t sequences, int64_t heads, double scale);

// The work, once all lengths are seen to fit; a window of 0 sees everything.
std::vector<Unit> units_of(const Call& call, const torch::stable::Tensor& lengths, int64_t sequences, int64_t window);

void run(Call& call, const std::vector<Unit>& units);

}  // namespace fastssl::cached
