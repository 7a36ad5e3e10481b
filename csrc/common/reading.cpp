#include "common/reading.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

namespace fastssl {
namespace {

constexpr int64_t kBlock = 1 << 14;  // words

int64_t sum_of_words_of(const torch::stable::Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.element_size() == sizeof(uint32_t), "sum_of_words: tensor");
  const auto* const words = static_cast<const uint32_t*>(tensor.const_data_ptr());
  const int64_t count = tensor.numel();
  const auto kernel = FASTSSL_KERNEL(sum_of_words);
  std::atomic<uint32_t> total{0};
  torch::stable::parallel_for(0, count, kBlock,
                              [&](int64_t begin, int64_t end) { total += kernel(words + begin, end - begin); });
  return total;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("sum_of_words", TORCH_BOX(&fastssl::sum_of_words_of));
}
