// Memory for results on the GPU, where PyTorch's own allocator keeps what has been freed; common/outputs.cpp is the
// twin for the CPU.
#include <vector>

#include "cuda/tensors.h"

namespace fastssl::cuda {
namespace {

using torch::stable::Tensor;

Tensor empty_output_of(const Tensor& like, std::vector<int64_t> sizes) {
  return empty_output(like, sizes, like.scalar_type());
}

}  // namespace
}  // namespace fastssl::cuda

STABLE_TORCH_LIBRARY_IMPL(fastssl, FASTSSL_GPU, m) {
  m.impl("empty_output", TORCH_BOX(&fastssl::cuda::empty_output_of));
}
