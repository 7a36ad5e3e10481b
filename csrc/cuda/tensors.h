// Tensors on the GPU as the launchers take them, on PyTorch's stable ABI.
//
// nvcc reads the definitions below; for the tests without a GPU, tests/cuda_emulation/tensors_on_host.h has their
// twins.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "common/operands.h"
#include "cuda/dropout.cuh"
#include "cuda/platform.cuh"

#ifndef __CUDACC__
#include "tensors_on_host.h"
#else

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

// The dispatch key under which the launchers register.
#define FASTSSL_GPU CUDA

namespace fastssl::cuda {

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// The device of a tensor, current as long as this lives, and PyTorch's current stream on it.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  DeviceLimits limits;
  cudaStream_t stream;

  explicit Device(const torch::stable::Tensor& tensor)
      : guard(tensor.get_device_index()),
        limits(limits_of(tensor.get_device_index())),
        stream(current_stream(tensor.get_device_index())) {}
};

inline torch::stable::Tensor empty_output(const torch::stable::Tensor& like,
                                          torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                          torch::headeronly::ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

}  // namespace fastssl::cuda
#endif

namespace fastssl::cuda {

inline torch::stable::Tensor empty_output(const torch::stable::Tensor& like) {
  return empty_output(like, like.sizes(), like.scalar_type());
}

inline torch::stable::Tensor nothing(const torch::stable::Tensor& like) {
  return empty_output(like, {0}, like.scalar_type());
}

// `like`: a tensor on the device of the kernel, where the seed must be too.
inline Dropout dropout_of(const char* op, int64_t threshold, const std::optional<torch::stable::Tensor>& seed,
                          const torch::stable::Tensor& like) {
  if (threshold == 0) return {};
  STD_TORCH_CHECK(seed && seed->scalar_type() == torch::headeronly::ScalarType::Long, op,
                  ": dropout needs an int64 seed");
  STD_TORCH_CHECK(seed->device() == like.device(), op, ": the seed must be on the device of the other tensors");
  return {static_cast<uint32_t>(threshold), 65536.0f / static_cast<float>(65536 - threshold),
          seed->const_data_ptr<int64_t>()};
}

}  // namespace fastssl::cuda
