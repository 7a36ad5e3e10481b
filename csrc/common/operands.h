// Tensors as elementwise kernels take them: packed, of a known dtype.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>

#include "common/dropout.h"
#include "common/element.h"

namespace fastssl {

inline Element element_of(const torch::stable::Tensor& tensor, const char* op) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      STD_TORCH_CHECK(false, op, ": unsupported dtype");
  }
}

// Calls through the stable ABI cost about a microsecond each: make only those that change something.
inline torch::stable::Tensor packed(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<torch::stable::Tensor> packed(const std::optional<torch::stable::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return packed(*tensor);
}

// A floating parameter, packed and in float32.
inline torch::stable::Tensor parameter(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return packed(tensor);
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "a parameter must be floating point");
  return packed(torch::stable::to(tensor, ScalarType::Float));
}

inline std::optional<torch::stable::Tensor> parameter(const std::optional<torch::stable::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return parameter(*tensor);
}

inline const void* data(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// A dropout by the threshold of its probability; it needs a seed unless that is 0.
inline Dropout dropout_of(int64_t threshold, const std::optional<torch::stable::Tensor>& seed, const char* op) {
  if (threshold == 0) return {};
  STD_TORCH_CHECK(seed && seed->scalar_type() == torch::headeronly::ScalarType::Long, op,
                  ": dropout needs an int64 seed");
  const auto key = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  return {static_cast<uint32_t>(threshold), 65536.0f / static_cast<float>(65536 - threshold),
          static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

inline constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// kernel(args, begin, end) over `count` items of `size` elements each, on PyTorch's threads.
template <class Args>
void parallel_items(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t count, int64_t size) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / size),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace fastssl
