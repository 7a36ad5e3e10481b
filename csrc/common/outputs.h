// Where operators put their results: the memory of large ones is kept when they are freed, and used again.
//
// PyTorch asks malloc, and glibc's gives large blocks back to the system as soon as they are free, so that the next
// tensor faults its pages in anew, 4 kB at a time, which can cost more than what the operator does.
// At most 512 MB are kept, in all threads together; release_kept_outputs() frees them. Results below 1 MB come from
// PyTorch as ever, so that the tests' poisoning of fresh memory reaches every kernel.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

namespace fastssl {

// An uninitialised tensor of the dtype of `like` and of its shape, or of `sizes`; packed.
torch::stable::Tensor empty_output(const torch::stable::Tensor& like);
torch::stable::Tensor empty_output(const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes);

}  // namespace fastssl
