#include "common/outputs.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastssl {
namespace {

using torch::stable::Tensor;

constexpr int64_t kMinBytes = int64_t{1} << 20;   // below, a page fault costs less than the bookkeeping is worth
constexpr int64_t kMaxKept = int64_t{512} << 20;  // bytes
constexpr int64_t kHugePage = int64_t{2} << 20;   // bytes; the granule and the alignment of all blocks

struct Block {
  void* memory;
  int64_t size;
};

// Free blocks, in the order in which they were freed.
struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t size = 0;  // bytes
};

Kept& kept() {
  static Kept& instance = *new Kept;  // never destroyed: tensors are freed until the process ends
  return instance;
}

// At most an eighth above `bytes`, or a huge page, so that batches of slightly different lengths share their blocks.
int64_t block_size(int64_t bytes) {
  const auto granule = std::max(kHugePage, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)) / 8));
  return (bytes + granule - 1) / granule * granule;
}

void* take(int64_t size) {
  {
    Kept& k = kept();
    const std::lock_guard lock(k.mutex);
    const auto last = std::find_if(k.blocks.rbegin(), k.blocks.rend(), [&](const Block& b) { return b.size == size; });
    if (last != k.blocks.rend()) {  // the last one freed: what is still in the cache of it, helps
      void* memory = last->memory;
      k.blocks.erase(std::next(last).base());
      k.size -= size;
      return memory;
    }
  }
  void* memory = std::aligned_alloc(kHugePage, static_cast<size_t>(size));
  STD_TORCH_CHECK(memory != nullptr, "fastssl: no memory for a tensor of ", size, " bytes");
#if defined(__linux__)
  madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);  // advice: without it, all is the same but slower
#endif
  return memory;
}

// Frees the oldest blocks beyond `limit` bytes.
void shrink(Kept& k, int64_t limit) {
  auto first_kept = k.blocks.begin();
  for (; k.size > limit; ++first_kept) {
    std::free(first_kept->memory);
    k.size -= first_kept->size;
  }
  k.blocks.erase(k.blocks.begin(), first_kept);
}

void give_back(void* memory, int64_t size) {
  Kept& k = kept();
  const std::lock_guard lock(k.mutex);
  k.blocks.push_back({memory, size});
  k.size += size;
  shrink(k, kMaxKept);
}

void release_kept_outputs() {
  Kept& k = kept();
  const std::lock_guard lock(k.mutex);
  shrink(k, 0);
}

}  // namespace

Tensor empty_output(const Tensor& like) {
  return empty_output(like, like.sizes());
}

Tensor empty_output(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  int64_t bytes = static_cast<int64_t>(like.element_size());
  for (const int64_t size : sizes) bytes *= size;
  const int64_t size = block_size(std::max<int64_t>(bytes, 1));
  if (bytes < kMinBytes || size > kMaxKept) return torch::stable::new_empty(like, sizes);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  return torch::stable::from_blob(take(size), sizes, strides, like.device(), like.scalar_type(),
                                  [size](void* memory) { give_back(memory, size); });
}

namespace {

Tensor empty_output_of(const Tensor& like, std::vector<int64_t> sizes) {
  return empty_output(like, sizes);
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("empty_output", TORCH_BOX(&fastssl::empty_output_of));
}

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("release_kept_outputs", TORCH_BOX(&fastssl::release_kept_outputs));
}
