#include "cached_attention/cached_attention.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <optional>
#include <vector>

#include "common/operands.h"
#include "common/outputs.h"
#include "common/scratch.h"

namespace fastssl {
namespace {

using cached::Cache;
using cached::Call;
using cached::Heads;
using cached::kChunk;
using cached::Unit;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kNumbersPerThread = 1 << 15;  // of keys and values, that are worth a thread

// (B, H, D); heads may be slices of a wider tensor.
Tensor with_contiguous_columns(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == 3, "cached_attention: q, k or v");
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Heads heads_of(const Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), tensor.stride(0), tensor.stride(1)};
}

Cache cache_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

void check_cache(const Tensor& cache, const Tensor& k, int64_t slots, ScalarType type) {
  STD_TORCH_CHECK(cache.dim() == 4 && cache.scalar_type() == type && cache.size(0) == k.size(0) &&
                      cache.size(1) == k.size(1) && cache.size(2) == slots && cache.size(3) == k.size(2) &&
                      (cache.stride(-1) == 1 || cache.size(-1) == 1),
                  "cached_attention: a cache");
}

void check_table(const Tensor& table, const Tensor& q) {
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float && table.dim() == 2 && table.size(0) == q.size(0) &&
                      table.size(1) == q.size(2) && q.size(2) % 2 == 0,
                  "cached_attention: cos or sin");
}

int64_t length_of(const Tensor& lengths, int64_t sequence) {
  return lengths.scalar_type() == ScalarType::Long ? lengths.const_data_ptr<int64_t>()[sequence]
                                                   : lengths.const_data_ptr<int32_t>()[sequence];
}

std::vector<Unit> units_of(const Call& call, const Tensor& lengths, int64_t window) {
  std::vector<Unit> units;
  for (int64_t sequence = 0; sequence < lengths.numel(); ++sequence) {
    const int64_t position = length_of(lengths, sequence), end = position + 1;
    STD_TORCH_CHECK(position >= 0 && (position < call.slots || (window > 0 && window <= call.slots)),
                    "cached_attention: the cache has room for ", call.slots, " tokens, and sequence ", sequence,
                    " has ", position, " already");
    const int64_t begin = window > 0 ? std::max<int64_t>(0, end - window) : 0;
    for (int64_t head = 0; head < call.key_heads; ++head)
      for (int64_t at = begin; at < end; at += kChunk)
        units.push_back({.sequence = sequence,
                         .key_head = head,
                         .begin = at,
                         .end = std::min(at + kChunk, end),
                         .position = position,
                         .alone = end - begin <= kChunk});
  }
  return units;
}

void merge(const Call& call, const std::vector<Unit>& units) {
  const auto kernel = FASTSSL_KERNEL(cached_attention_merge);
  const auto count = static_cast<int64_t>(units.size());
  for (int64_t begin = 0, end; begin < count; begin = end) {
    const Unit& first = units[begin];
    for (end = begin + 1;
         end < count && units[end].sequence == first.sequence && units[end].key_head == first.key_head;)
      ++end;
    if (!first.alone) kernel(call, units.data(), begin, end);
  }
}

void run(Call& call, const std::vector<Unit>& units) {
  int64_t numbers = 0, split = 0;
  for (const Unit& unit : units) {
    numbers += 2 * (unit.end - unit.begin) * call.width;
    split += unit.alone ? 0 : 1;
  }
  const auto count = static_cast<int64_t>(units.size());
  const int64_t workers =
      std::min({static_cast<int64_t>(torch::stable::get_num_threads()), count, 1 + numbers / kNumbersPerThread});
  const int64_t own = cached::scratch_floats(call);
  const int64_t partial = split > 0 ? count * call.heads_per_key * (call.width + 2) : 0;
  Scratch scratch(Scratch::bytes_of<float>(partial) + workers * Scratch::bytes_of<float>(own));
  call.partials = scratch.take<float>(partial);
  std::vector<float*> memory(workers);
  for (float*& part : memory) part = scratch.take<float>(own);
  const auto kernel = FASTSSL_KERNEL(cached_attention);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t index = next++; index < count; index = next++) kernel(call, units.data(), index, memory[worker]);
  });
  if (split > 0) merge(call, units);
}

Tensor cached_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, Tensor k_cache, Tensor v_cache,
                        const Tensor& lengths_in, int64_t window, double scale, const OptionalTensor& cos_in,
                        const OptionalTensor& sin_in) {
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const Tensor lengths = packed(lengths_in);
  const OptionalTensor cos = packed(cos_in), sin = packed(sin_in);
  const int64_t sequences = q.size(0), slots = k_cache.size(2);
  const ScalarType type = k_cache.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "cached_attention: dtype of the caches");
  check_cache(k_cache, k, slots, type);
  check_cache(v_cache, v, slots, type);
  STD_TORCH_CHECK(k.size(0) == sequences && v.size(0) == sequences && k.size(1) == v.size(1) && k.size(1) > 0 &&
                      q.size(1) % k.size(1) == 0 && q.size(2) > 0 && q.size(2) == k.size(2) && q.size(2) == v.size(2),
                  "cached_attention: shapes of q, k and v");
  STD_TORCH_CHECK((lengths.scalar_type() == ScalarType::Int || lengths.scalar_type() == ScalarType::Long) &&
                      lengths.dim() == 1 && lengths.numel() == sequences,
                  "cached_attention: lengths");
  STD_TORCH_CHECK(cos.has_value() == sin.has_value(), "cached_attention: cos without sin");
  if (cos) check_table(*cos, q);
  if (sin) check_table(*sin, q);
  Tensor out = torch::stable::new_empty(q, {sequences, q.size(1), q.size(2)});
  Call call{.q = heads_of(q),
            .k = heads_of(k),
            .v = heads_of(v),
            .k_cache = cache_of(k_cache),
            .v_cache = cache_of(v_cache),
            .cos = cos ? cos->const_data_ptr<float>() : nullptr,
            .sin = sin ? sin->const_data_ptr<float>() : nullptr,
            .out = out.mutable_data_ptr<float>(),
            .partials = nullptr,
            .heads = q.size(1),
            .key_heads = k.size(1),
            .heads_per_key = q.size(1) / k.size(1),
            .width = q.size(2),
            .slots = slots,
            .scale = static_cast<float>(scale),
            .bfloat16 = type == ScalarType::BFloat16};
  const std::vector<Unit> units = units_of(call, lengths, window);
  if (!units.empty()) run(call, units);
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("cached_attention", TORCH_BOX(&fastssl::cached_attention));
}
