#include "attention/attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/operands.h"
#include "common/outputs.h"

namespace fastssl {
namespace attention {

int64_t forward_scratch(int64_t width, int64_t num_keys) {
  return padded(width) * (2 * padded(num_keys) + 3 * kQueryTile) + 3 * kKeyTile * kQueryTile + 3 * kQueryTile;
}

int64_t backward_scratch(int64_t width, int64_t num_keys) {
  return padded(width) * (4 * padded(num_keys) + 6 * kQueryTile) + 4 * kKeyTile * kQueryTile + 2 * kQueryTile;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kGrain = 1 << 19;  // multiplications that are worth a thread
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kGroupsPerThread = 16;

Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Half:
      return Storage::float16;
    default:
      STD_TORCH_CHECK(false, "attention: unsupported dtype");
  }
}

// Columns must be contiguous; rows and heads may be slices of a wider tensor.
Tensor with_contiguous_columns(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// (N, H, D) or (B, T, H, D).
Rows rows_of(const Tensor& tensor) {
  const bool dense = tensor.dim() == 4;
  return {tensor.data_ptr(), dense ? tensor.stride(0) : 0, tensor.stride(-3), tensor.stride(-2)};
}

// lse (H, N) or (B, H, T); its rows must be contiguous.
Rows lse_rows_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.dim() == 3 ? tensor.stride(0) : 0, 1, tensor.stride(-2)};
}

// (H, T, S) or (B, H, T, S).
Rows bias_rows_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.dim() == 4 ? tensor.stride(0) : 0, tensor.stride(-2), tensor.stride(-3)};
}

std::vector<Item> packed_sequences(const Tensor& q, const Tensor& k, const Tensor& offsets_q, const Tensor& offsets_k) {
  STD_TORCH_CHECK(offsets_q.scalar_type() == ScalarType::Int && offsets_k.scalar_type() == ScalarType::Int &&
                      offsets_q.numel() >= 1 && offsets_q.numel() == offsets_k.numel(),
                  "attention: cu_seqlens must be int32 tensors of one length");
  const int32_t* const begin_q = offsets_q.const_data_ptr<int32_t>();
  const int32_t* const begin_k = offsets_k.const_data_ptr<int32_t>();
  const int64_t count = offsets_q.numel() - 1;
  bool valid = begin_q[0] == 0 && begin_k[0] == 0 && begin_q[count] == q.size(0) && begin_k[count] == k.size(0);
  std::vector<Item> sequences;
  sequences.reserve(count);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t queries = begin_q[b + 1] - begin_q[b], keys = begin_k[b + 1] - begin_k[b];
    valid = valid && queries >= 0 && keys >= 0;
    sequences.push_back({b, 0, begin_q[b], queries, begin_k[b], keys, 0, queries});
  }
  STD_TORCH_CHECK(valid, "attention: cu_seqlens must rise from 0 to the number of rows");
  return sequences;
}

// One item a sequence, head 0, the costliest first.
std::vector<Item> sequences_of(const Tensor& q, const Tensor& k, const OptionalTensor& offsets_q,
                               const OptionalTensor& offsets_k) {
  std::vector<Item> sequences;
  if (q.dim() == 3) {
    STD_TORCH_CHECK(offsets_q, "attention: packed input needs cu_seqlens");
    const Tensor begin_q = torch::stable::contiguous(*offsets_q);
    sequences = packed_sequences(q, k, begin_q, offsets_k ? torch::stable::contiguous(*offsets_k) : begin_q);
  } else {
    for (int64_t b = 0; b < q.size(0); ++b) sequences.push_back({b, 0, 0, q.size(1), 0, k.size(1), 0, q.size(1)});
  }
  std::stable_sort(sequences.begin(), sequences.end(), [](const Item& a, const Item& b) {
    return a.num_queries * a.num_keys > b.num_queries * b.num_keys;
  });
  return sequences;
}

int64_t longest_keys(const std::vector<Item>& sequences) {
  int64_t longest = 0;
  for (const Item& item : sequences) longest = std::max(longest, item.num_keys);
  return longest;
}

struct AlignedDelete {
  void operator()(float* memory) const {
    ::operator delete(memory, std::align_val_t(64));
  }
};

// Items in groups: one worker takes a group and computes its items in order.
struct Plan {
  std::vector<Item> items;
  std::vector<size_t> ends;  // of the groups, in items
};

// One item a sequence and head: all heads of a sequence, or all sequences of a head, one after the other. The second
// serves sequences that share a bias, which then stays in the cache.
std::vector<Item> with_heads(const std::vector<Item>& sequences, int64_t heads, bool head_by_head) {
  const auto count = static_cast<int64_t>(sequences.size());
  std::vector<Item> items;
  items.reserve(count * heads);
  for (int64_t i = 0; i < count * heads; ++i) {
    items.push_back(sequences[head_by_head ? i % count : i / heads]);
    items.back().head = head_by_head ? i / count : i % heads;
  }
  return items;
}

// Groups neighbouring items: heads of one sequence share the pages and, where rows are short, the lines of memory.
Plan in_groups(std::vector<Item> items) {
  const auto cost = [&](const Item& item) { return item.num_keys * (item.query_end - item.query_begin) + 1; };
  int64_t total = 0, group = 0;
  for (const Item& item : items) total += cost(item);
  const int64_t limit = total / (kGroupsPerThread * torch::stable::get_num_threads());
  Plan plan{std::move(items), {}};
  for (size_t i = 0; i < plan.items.size(); ++i) {
    group += cost(plan.items[i]);
    if (i + 1 == plan.items.size() || group + cost(plan.items[i + 1]) > limit) {
      plan.ends.push_back(i + 1);
      group = 0;
    }
  }
  return plan;
}

// kernel(args, item, next, scratch) for every item, each group taken by the next free worker.
template <class Kernel>
void run(const Plan& plan, const Arguments& args, int64_t multiplications, int64_t scratch_floats, Kernel kernel) {
  const auto groups = static_cast<int64_t>(plan.ends.size());
  const int64_t useful = std::min<int64_t>({torch::stable::get_num_threads(), groups, 1 + multiplications / kGrain});
  // Where there are few groups left for each worker, one that takes its next early may keep others waiting.
  const bool early = groups >= kItemsPerThread * useful;
  std::atomic<int64_t> next_group{0};
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, useful, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      const std::unique_ptr<float, AlignedDelete> scratch(static_cast<float*>(
          ::operator new(sizeof(float) * static_cast<size_t>(scratch_floats), std::align_val_t(64), std::nothrow)));
      if (!scratch) {
        out_of_memory = true;
        return;
      }
      const Item* const items = plan.items.data();
      const auto first = [&](int64_t g) { return g == 0 ? 0 : plan.ends[g - 1]; };
      for (int64_t group = next_group++; group < groups;) {
        const size_t last = plan.ends[group] - 1;
        for (size_t i = first(group); i < last; ++i) kernel(args, items[i], &items[i + 1], scratch.get());
        const int64_t following = early ? next_group++ : groups;
        kernel(args, items[last], following < groups ? &items[first(following)] : nullptr, scratch.get());
        group = early ? following : next_group++;
      }
    }
  });
  STD_TORCH_CHECK(!out_of_memory, "attention: no memory for ", scratch_floats * 4, " bytes of scratch");
}

int64_t multiplications(const std::vector<Item>& sequences, int64_t heads, int64_t width) {
  int64_t total = 0;
  for (const Item& item : sequences) total += item.num_queries * item.num_keys;
  return 2 * total * heads * width;
}

Arguments arguments(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                    const OptionalTensor& alibi, int64_t window_left, int64_t window_right, int64_t dropout_threshold,
                    const OptionalTensor& seed, double scale) {
  STD_TORCH_CHECK(q.dim() == k.dim() && q.size(-1) == k.size(-1) && k.sizes().equals(v.sizes()) && k.size(-2) > 0 &&
                      q.size(-2) % k.size(-2) == 0 && (q.dim() == 3 || q.size(0) == k.size(0)),
                  "attention: shapes of q, k and v");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                  "attention: dtypes of q, k and v");
  Arguments args;
  args.storage = storage_of(q);
  args.width = q.size(-1);
  args.heads_per_key = q.size(-2) / k.size(-2);
  args.q = rows_of(q);
  args.k = rows_of(k);
  args.v = rows_of(v);
  if (bias) {
    args.bias_storage = storage_of(*bias);
    args.bias = bias_rows_of(*bias);
  }
  if (alibi) {
    STD_TORCH_CHECK(alibi->scalar_type() == ScalarType::Float && alibi->is_contiguous() && alibi->numel() == q.size(-2),
                    "attention: alibi_slopes must be H contiguous float32 numbers");
    args.alibi = alibi->const_data_ptr<float>();
  }
  args.window_left = window_left;
  args.window_right = window_right;
  args.scale = static_cast<float>(scale);
  args.dropout = dropout_of(dropout_threshold, seed, "attention");
  return args;
}

void check_bias(const OptionalTensor& bias, const std::vector<Item>& sequences, int64_t heads) {
  if (!bias) return;
  int64_t longest_q = 0;
  for (const Item& item : sequences) longest_q = std::max(longest_q, item.num_queries);
  STD_TORCH_CHECK((bias->dim() == 3 || bias->size(0) == static_cast<int64_t>(sequences.size())) &&
                      bias->size(-3) == heads && bias->size(-2) >= longest_q &&
                      bias->size(-1) >= longest_keys(sequences),
                  "attention: bias must cover the longest sequences");
}

OptionalTensor with_contiguous_columns(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(with_contiguous_columns(*tensor)) : std::nullopt;
}

// Sizes of lse for queries (N, H, D) or (B, T, H, D).
std::vector<int64_t> lse_sizes(const Tensor& q) {
  if (q.dim() == 3) return {q.size(1), q.size(0)};
  return {q.size(0), q.size(2), q.size(1)};
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                   const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                   const OptionalTensor& bias_in, const OptionalTensor& alibi_slopes,
                                   int64_t window_left, int64_t window_right, int64_t dropout_threshold,
                                   const OptionalTensor& seed, double scale) {
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const OptionalTensor bias = with_contiguous_columns(bias_in);
  Arguments args = arguments(q, k, v, bias, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  const std::vector<Item> sequences = sequences_of(q, k, cu_seqlens_q, cu_seqlens_k);
  const int64_t heads = q.size(-2);
  check_bias(bias, sequences, heads);
  Tensor out = empty_output(q);
  Tensor lse = torch::stable::new_empty(q, lse_sizes(q), ScalarType::Float);
  args.out = rows_of(out);
  args.lse = lse_rows_of(lse);

  // Whole sequences unless there are too few of them to keep all threads busy; the results are the same.
  const bool whole =
      static_cast<int64_t>(sequences.size()) * heads >= kItemsPerThread * torch::stable::get_num_threads();
  std::vector<Item> items;
  for (Item item : with_heads(sequences, heads, bias && bias->dim() == 3)) {
    const int64_t step = whole ? std::max<int64_t>(item.num_queries, 1) : kQueryTile;
    for (item.query_begin = 0; item.query_begin < item.num_queries; item.query_begin += step) {
      item.query_end = std::min(item.query_begin + step, item.num_queries);
      items.push_back(item);
    }
  }
  run(in_groups(std::move(items)), args, multiplications(sequences, heads, args.width),
      forward_scratch(args.width, longest_keys(sequences)), FASTSSL_KERNEL(attention_forward));
  return {out, lse};
}

// The gradients of q, k and v: apart, or in one buffer (rows, H + 2 H_k, D), so that the gradient of the projection
// that q, k and v are slices of needs no copy.
struct Gradients {
  Tensor of_q, of_k, of_v;  // `together`: the first holds all, the others nothing
  Rows q, k, v;
};

Gradients gradients(const Tensor& q, const Tensor& k, bool together) {
  if (!together) {
    Gradients g{empty_output(q), empty_output(k), empty_output(k), {}, {}, {}};
    g.q = rows_of(g.of_q);
    g.k = rows_of(g.of_k);
    g.v = rows_of(g.of_v);
    return g;
  }
  const int64_t heads = q.size(-2), key_heads = k.size(-2);
  STD_TORCH_CHECK(q.size(0) == k.size(0) && (q.dim() == 3 || q.size(1) == k.size(1)),
                  "attention: q and k of one projection must have the same rows");
  std::vector<int64_t> sizes(q.sizes().begin(), q.sizes().end());
  sizes[sizes.size() - 2] = heads + 2 * key_heads;
  const auto nothing = [&] { return torch::stable::new_empty(k, {0}); };
  Gradients g{empty_output(q, sizes), nothing(), nothing(), {}, {}, {}};
  const auto from_head = [&](int64_t head) {
    Rows rows = rows_of(g.of_q);
    const size_t element = q.scalar_type() == ScalarType::Float ? 4 : 2;
    rows.data = static_cast<char*>(rows.data) + static_cast<size_t>(head * rows.head) * element;
    return rows;
  };
  g.q = from_head(0);
  g.k = from_head(heads);
  g.v = from_head(heads + key_heads);
  return g;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out_in, const OptionalTensor& grad_lse_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& v_in, const Tensor& out, const Tensor& lse, const OptionalTensor& cu_seqlens_q,
    const OptionalTensor& cu_seqlens_k, const OptionalTensor& bias_in, const OptionalTensor& alibi_slopes,
    int64_t window_left, int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed, double scale,
    bool bias_needs_grad, bool together) {
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const Tensor grad_out = with_contiguous_columns(grad_out_in);
  const OptionalTensor grad_lse = with_contiguous_columns(grad_lse_in), bias = with_contiguous_columns(bias_in);
  Arguments args = arguments(q, k, v, bias, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  STD_TORCH_CHECK(grad_out.sizes().equals(q.sizes()) && out.sizes().equals(q.sizes()) && out.is_contiguous() &&
                      lse.is_contiguous() && lse.numel() * args.width == q.numel() &&
                      (!grad_lse || grad_lse->sizes().equals(lse.sizes())),
                  "attention: shapes of the backward");
  const std::vector<Item> sequences = sequences_of(q, k, cu_seqlens_q, cu_seqlens_k);
  const int64_t heads = q.size(-2), key_heads = k.size(-2);
  check_bias(bias, sequences, heads);
  const Gradients g = gradients(q, k, together);
  Tensor grad_bias = bias_needs_grad ? empty_output(lse, bias->sizes()) : torch::stable::new_empty(lse, {0});
  if (bias_needs_grad) torch::stable::zero_(grad_bias);
  args.out = rows_of(out);
  args.lse = lse_rows_of(lse);
  args.grad_out = rows_of(grad_out);
  args.grad_q = g.q;
  args.grad_k = g.k;
  args.grad_v = g.v;
  if (grad_lse) args.grad_lse = lse_rows_of(*grad_lse);
  if (bias_needs_grad) args.grad_bias = bias_rows_of(grad_bias);

  // Sequences that share a bias add to the same gradient: one worker then takes them all, in order.
  const int64_t count = static_cast<int64_t>(sequences.size());
  const bool shared = bias_needs_grad && bias->dim() == 3;
  Plan plan;
  if (shared) {
    plan.items = with_heads(sequences, key_heads, true);
    for (int64_t end = count; end <= count * key_heads && count > 0; end += count) plan.ends.push_back(end);
  } else {
    plan = in_groups(with_heads(sequences, key_heads, false));
  }
  run(plan, args, multiplications(sequences, heads, args.width), backward_scratch(args.width, longest_keys(sequences)),
      FASTSSL_KERNEL(attention_backward));
  return {g.of_q, g.of_k, g.of_v, grad_bias};
}

}  // namespace
}  // namespace attention
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&fastssl::attention::forward));
  m.impl("attention_backward", TORCH_BOX(&fastssl::attention::backward));
}
