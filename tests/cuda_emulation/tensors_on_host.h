// Twins of csrc/cuda/tensors.h for CPU tensors: the launchers run as they are, under the dispatch key of the CPU.
//
// What a launcher allocates is NaN between two guard zones, which are looked at when it is freed.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

#define FASTSSL_GPU CPU

namespace cuda_on_host {

inline constexpr size_t kTensorGuardBytes = 256;

// Keeps the message of the first error that no run could throw, for the tests to ask for.
void remember(const char* what);

inline size_t bytes_of(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  if (dtype == ScalarType::Float || dtype == ScalarType::Int) return 4;
  return dtype == ScalarType::Long ? 8 : dtype == ScalarType::Bool ? 1 : 2;
}

}  // namespace cuda_on_host

namespace fastssl::cuda {

struct Device {
  explicit Device(const torch::stable::Tensor&) {}
  DeviceLimits limits = limits_of(0);
  cudaStream_t stream = nullptr;
};

inline torch::stable::Tensor empty_output(const torch::stable::Tensor& like,
                                          torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                          torch::headeronly::ScalarType dtype) {
  using namespace cuda_on_host;
  constexpr unsigned char kGuard = 0xa5;
  size_t bytes = bytes_of(dtype);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  const size_t total = (bytes + 2 * kTensorGuardBytes + 255) / 256 * 256;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(256, total));
  std::memset(memory, kGuard, total);
  std::memset(memory + kTensorGuardBytes, 0xff, bytes);
  const auto look_and_free = [memory, bytes, total](void*) {
    for (size_t i = 0; i < total; ++i)
      if ((i < kTensorGuardBytes || i >= kTensorGuardBytes + bytes) && memory[i] != kGuard) {
        remember("a write outside a tensor that a launcher allocated");
        break;
      }
    std::free(memory);
  };
  return torch::stable::from_blob(memory + kTensorGuardBytes, sizes, strides, like.device(), dtype, look_and_free);
}

}  // namespace fastssl::cuda
