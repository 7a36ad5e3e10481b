#include <torch/csrc/stable/library.h>

#include <atomic>
#include <optional>
#include <vector>

#include "cached_attention/call.h"
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

void check_table(const Tensor& table, int64_t sequences, int64_t width) {
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float && table.is_contiguous() && table.dim() == 2 &&
                      table.size(0) == sequences && table.size(1) == width && width % 2 == 0,
                  "cached_attention: cos or sin");
}

int64_t length_of(const Tensor& lengths, int64_t sequence) {
  return lengths.scalar_type() == ScalarType::Long ? lengths.const_data_ptr<int64_t>()[sequence]
                                                   : lengths.const_data_ptr<int32_t>()[sequence];
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

void run_units(Call& call, const std::vector<Unit>& units) {
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

}  // namespace

cached::Call cached::call_of(const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& cos,
                             const OptionalTensor& sin, int64_t sequences, int64_t heads, double scale) {
  const ScalarType type = k_cache.scalar_type();
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::BFloat16) && v_cache.scalar_type() == type,
                  "cached_attention: dtype of the caches");
  STD_TORCH_CHECK(k_cache.dim() == 4 && v_cache.dim() == 4, "cached_attention: shape of a cache");
  const int64_t key_heads = k_cache.size(1), width = k_cache.size(3);
  for (const Tensor* cache : {&k_cache, &v_cache})
    STD_TORCH_CHECK(cache->size(0) == sequences && cache->size(1) == key_heads && cache->size(2) == k_cache.size(2) &&
                        cache->size(3) == width && (cache->stride(-1) == 1 || width == 1),
                    "cached_attention: shape or strides of a cache");
  STD_TORCH_CHECK(key_heads > 0 && width > 0 && heads % key_heads == 0, "cached_attention: heads");
  STD_TORCH_CHECK(cos.has_value() == sin.has_value(), "cached_attention: cos without sin");
  if (cos) check_table(*cos, sequences, width);
  if (sin) check_table(*sin, sequences, width);
  Call call{};
  call.k_cache = cache_of(k_cache);
  call.v_cache = cache_of(v_cache);
  call.cos = cos ? cos->const_data_ptr<float>() : nullptr;
  call.sin = sin ? sin->const_data_ptr<float>() : nullptr;
  call.heads = heads;
  call.key_heads = key_heads;
  call.heads_per_key = heads / key_heads;
  call.width = width;
  call.slots = k_cache.size(2);
  call.scale = static_cast<float>(scale);
  call.bfloat16 = type == ScalarType::BFloat16;
  return call;
}

std::vector<cached::Unit> cached::units_of(const Call& call, const Tensor& lengths, int64_t sequences, int64_t window) {
  STD_TORCH_CHECK((lengths.scalar_type() == ScalarType::Int || lengths.scalar_type() == ScalarType::Long) &&
                      lengths.is_contiguous() && lengths.dim() == 1 && lengths.numel() == sequences,
                  "cached_attention: lengths");
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

void cached::run(Call& call, const std::vector<Unit>& units) {
  if (!units.empty()) run_units(call, units);
}

namespace {

Tensor cached_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, Tensor k_cache, Tensor v_cache,
                        const Tensor& lengths_in, int64_t window, double scale, const OptionalTensor& cos_in,
                        const OptionalTensor& sin_in) {
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const Tensor lengths = packed(lengths_in);
  const OptionalTensor cos = packed(cos_in), sin = packed(sin_in);
  Call call = cached::call_of(k_cache, v_cache, cos, sin, q.size(0), q.size(1), scale);
  for (const Tensor* tensor : {&q, &k, &v})
    STD_TORCH_CHECK(tensor->size(0) == q.size(0) && tensor->size(1) == (tensor == &q ? call.heads : call.key_heads) &&
                        tensor->size(2) == call.width,
                    "cached_attention: shapes of q, k and v");
  const std::vector<Unit> units = cached::units_of(call, lengths, q.size(0), window);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  call.q = heads_of(q);
  call.k = heads_of(k);
  call.v = heads_of(v);
  call.out = out.mutable_data_ptr<float>();
  cached::run(call, units);
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("cached_attention", TORCH_BOX(&fastssl::cached_attention));
}
