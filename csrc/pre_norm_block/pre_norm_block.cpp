#include "pre_norm_block/pre_norm_block.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/block_sums.h"
#include "common/operands.h"
#include "common/outputs.h"

namespace fastssl {
namespace pre_norm {

int64_t packed_floats(const Sizes& s) {
  return s.qkv() * s.width + s.width * s.attended() + 2 * s.width * s.mlp_width;
}

int64_t forward_scratch(const Sizes& s, int64_t longest) {
  return packed_floats(s) + kRowsTogether * (2 * s.width + s.mlp_width + kGap) +
         attention::forward_scratch(s.head_width, longest);
}

int64_t backward_scratch(const Sizes& s, int64_t longest) {
  const int64_t rows_of_group = longest + kRowsTogether;
  return packed_floats(s) + kRowsTogether * (3 * s.width + kGap + 2 * (s.mlp_width + kGap)) + 2 * s.width +
         rows_of_group * (s.attended() + s.qkv() + 2 * kGap) + attention::backward_scratch(s.head_width, longest);
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "pre_norm_block";
constexpr size_t kParameters = 12;

const float* numbers(const Tensor& tensor, int64_t count, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == count,
                  "pre_norm_block: ", name, " must be ", count, " packed float32 numbers");
  return tensor.const_data_ptr<float>();
}

const float* numbers(const OptionalTensor& tensor, int64_t count, const char* name) {
  return tensor ? numbers(*tensor, count, name) : nullptr;
}

// A bias that is not there is an empty tensor.
Map<const float> map_of(const std::vector<Tensor>& parameters, size_t i, int64_t outputs, int64_t inputs) {
  return {numbers(parameters[i], outputs * inputs, "a weight"),
          parameters[i + 1].numel() == 0 ? nullptr : numbers(parameters[i + 1], outputs, "a bias")};
}

Parameters<const float> parameters_of(const std::vector<Tensor>& parameters, const Sizes& s) {
  return {map_of(parameters, 0, s.width, 1),
          map_of(parameters, 2, s.qkv(), s.width),
          map_of(parameters, 4, s.width, s.attended()),
          map_of(parameters, 6, s.width, 1),
          map_of(parameters, 8, s.mlp_width, s.width),
          map_of(parameters, 10, s.width, s.mlp_width)};
}

// Where the gradients of all parameters stand in one buffer.
Parameters<float> gradients_in(float* memory, const Sizes& s) {
  const auto take = [&](int64_t outputs, int64_t inputs) {
    float* const weight = memory;
    memory += outputs * inputs + outputs;
    return Map<float>{weight, weight + outputs * inputs};
  };
  Parameters<float> p;
  p.attention_norm = take(s.width, 1);
  p.qkv = take(s.qkv(), s.width);
  p.output = take(s.width, s.attended());
  p.mlp_norm = take(s.width, 1);
  p.up = take(s.mlp_width, s.width);
  p.down = take(s.width, s.mlp_width);
  return p;
}

Sizes sizes_of(const std::vector<Tensor>& parameters, int64_t width, int64_t heads, int64_t head_width) {
  STD_TORCH_CHECK(parameters.size() == kParameters && parameters[2].dim() == 2 && parameters[8].dim() == 2 &&
                      heads > 0 && head_width > 0,
                  "pre_norm_block: parameters");
  const int64_t key_heads = (parameters[2].size(0) / head_width - heads) / 2;
  const Sizes s{width, heads, key_heads, head_width, parameters[8].size(0)};
  STD_TORCH_CHECK(key_heads > 0 && heads % key_heads == 0 && s.qkv() == parameters[2].size(0), "pre_norm_block: heads");
  for (const int64_t columns : {s.width, s.qkv(), s.attended(), s.mlp_width})
    STD_TORCH_CHECK(columns % attention::kPadding == 0, "pre_norm_block: widths must be multiples of 16");
  return s;
}

// What is neither a tensor of rows nor dropout.
Block block_of(const std::vector<Tensor>& parameters, const Tensor& rows, int64_t heads, int64_t head_width,
               int64_t window_left, int64_t window_right, double scale, double attention_eps, double mlp_eps,
               bool tanh) {
  STD_TORCH_CHECK(rows.dim() == 2, "pre_norm_block: rows must be (N, E)");
  Block b{};
  b.sizes = sizes_of(parameters, rows.size(1), heads, head_width);
  b.parameters = parameters_of(parameters, b.sizes);
  b.attention_eps = static_cast<float>(attention_eps);
  b.mlp_eps = static_cast<float>(mlp_eps);
  b.tanh = tanh;
  b.attention.width = head_width;
  b.attention.heads_per_key = heads / b.sizes.key_heads;
  b.attention.window_left = window_left;
  b.attention.window_right = window_right;
  b.attention.scale = static_cast<float>(scale);
  b.rows = rows.size(0);
  return b;
}

void take_turns(Block& block, const OptionalTensor& cos, const OptionalTensor& sin) {
  const int64_t width = block.sizes.head_width;
  STD_TORCH_CHECK(cos.has_value() == sin.has_value() && (!cos || width % 2 == 0), "pre_norm_block: rotary");
  block.cos = numbers(cos, block.rows * width / 2, "cos");
  block.sin = numbers(sin, block.rows * width / 2, "sin");
}

// Sequences in shares of about the same cost, one a worker, in order: what a worker sums does not depend on the others.
std::vector<Share> shares_of(const Tensor& cu_seqlens, const Block& block) {
  STD_TORCH_CHECK(cu_seqlens.scalar_type() == ScalarType::Int && cu_seqlens.is_contiguous() && cu_seqlens.numel() > 0,
                  "pre_norm_block: cu_seqlens must be packed int32 numbers");
  const int32_t* const begin = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t sequences = cu_seqlens.numel() - 1, workers = torch::stable::get_num_threads();
  const int64_t of_row = gradient_floats(block.sizes), of_pair = 2 * block.sizes.attended();
  bool valid = begin[0] == 0 && begin[sequences] == block.rows;
  std::vector<int64_t> cost(sequences + 1, 0);
  int64_t longest = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t length = begin[b + 1] - begin[b];
    valid = valid && length >= 0;
    cost[b + 1] = cost[b] + length * (of_row + of_pair * length);
    longest = std::max(longest, length);
  }
  STD_TORCH_CHECK(valid, "pre_norm_block: cu_seqlens must rise from 0 to the number of rows");
  std::vector<Share> shares;
  int64_t first = 0;
  for (int64_t worker = 1; worker <= workers && first < sequences; ++worker) {
    int64_t last = worker == workers ? sequences : first + 1;
    // Whichever end is nearer to this worker's part of the whole.
    const int64_t wanted = cost[sequences] / workers * worker;
    while (last < sequences && cost[last] + cost[last + 1] <= 2 * wanted) ++last;
    shares.push_back({begin, first, last, longest});
    first = last;
  }
  return shares;
}

// body(share, its number, its memory) on PyTorch's threads, each share by one of them.
template <class Body>
void run(const std::vector<Share>& shares, const Tensor& like, int64_t floats, Body body) {
  const auto count = static_cast<int64_t>(shares.size());
  floats = (floats + attention::kPadding - 1) / attention::kPadding * attention::kPadding;
  Tensor memory = empty_output(like, {count, floats});
  float* const data = memory.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(shares[i], i, data + i * floats);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& addend_in, const OptionalTensor& residual_in, std::vector<Tensor> parameters,
    const Tensor& cu_seqlens, int64_t heads, int64_t head_width, int64_t window_left, int64_t window_right,
    double scale, double attention_eps, double mlp_eps, bool tanh, int64_t addend_threshold,
    const OptionalTensor& addend_seed, int64_t attention_threshold, const OptionalTensor& attention_seed,
    int64_t output_threshold, const OptionalTensor& output_seed, const OptionalTensor& cos, const OptionalTensor& sin) {
  const Tensor addend = packed(addend_in);
  const OptionalTensor residual = packed(residual_in);
  Forward f{
      block_of(parameters, addend, heads, head_width, window_left, window_right, scale, attention_eps, mlp_eps, tanh),
      nullptr};
  const Sizes& s = f.sizes;
  const std::vector<Share> shares = shares_of(cu_seqlens, f);
  f.addend_dropout = dropout_of(addend_threshold, addend_seed, kOp);
  f.attention.dropout = dropout_of(attention_threshold, attention_seed, kOp);
  f.output_dropout = dropout_of(output_threshold, output_seed, kOp);
  take_turns(f, cos, sin);
  f.addend = numbers(addend, f.rows * s.width, "addend");
  f.residual = numbers(residual, f.rows * s.width, "residual");
  const bool adds = residual || addend_threshold > 0;
  Tensor out = empty_output(addend), inner_stream = empty_output(addend);
  Tensor stream = adds ? empty_output(addend) : torch::stable::new_empty(addend, {0});
  Tensor statistics = torch::stable::new_empty(addend, {4, f.rows});
  Tensor qkv = empty_output(addend, {f.rows, s.qkv()}), attended = empty_output(addend, {f.rows, s.attended()});
  Tensor lse = torch::stable::new_empty(addend, {s.heads, f.rows});
  Tensor up = empty_output(addend, {f.rows, s.mlp_width});
  f.out = out.mutable_data_ptr<float>();
  f.inner_stream = inner_stream.mutable_data_ptr<float>();
  f.stream = adds ? stream.mutable_data_ptr<float>() : nullptr;
  f.mean = statistics.mutable_data_ptr<float>();
  f.rstd = f.mean + 2 * f.rows;
  f.qkv = qkv.mutable_data_ptr<float>();
  f.attended = attended.mutable_data_ptr<float>();
  f.lse = lse.mutable_data_ptr<float>();
  f.up = up.mutable_data_ptr<float>();
  const auto kernel = FASTSSL_KERNEL(pre_norm_block_forward);
  run(shares, addend, shares.empty() ? 0 : forward_scratch(s, shares[0].longest),
      [&](const Share& share, int64_t, float* memory) { kernel(f, share, memory); });
  return {out, inner_stream, stream, statistics, qkv, attended, lse, up};
}

// `stream`: the addend where nothing was added to it or dropped from it.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out_in, const OptionalTensor& grad_inner_stream_in, const Tensor& inner_stream,
    const Tensor& stream_in, const Tensor& statistics, const Tensor& qkv, const Tensor& attended, const Tensor& lse,
    const Tensor& up, std::vector<Tensor> parameters, const Tensor& cu_seqlens, int64_t heads, int64_t head_width,
    int64_t window_left, int64_t window_right, double scale, double attention_eps, double mlp_eps, bool tanh,
    int64_t addend_threshold, const OptionalTensor& addend_seed, int64_t attention_threshold,
    const OptionalTensor& attention_seed, int64_t output_threshold, const OptionalTensor& output_seed,
    const OptionalTensor& cos, const OptionalTensor& sin) {
  const Tensor grad_out = packed(grad_out_in), stream = packed(stream_in);
  const OptionalTensor grad_inner_stream = packed(grad_inner_stream_in);
  Backward b{
      block_of(parameters, stream, heads, head_width, window_left, window_right, scale, attention_eps, mlp_eps, tanh),
      nullptr, nullptr, nullptr, nullptr};
  const Sizes& s = b.sizes;
  const std::vector<Share> shares = shares_of(cu_seqlens, b);
  b.addend_dropout = dropout_of(addend_threshold, addend_seed, kOp);
  b.attention.dropout = dropout_of(attention_threshold, attention_seed, kOp);
  b.output_dropout = dropout_of(output_threshold, output_seed, kOp);
  take_turns(b, cos, sin);
  // The kernel reads these.
  const auto saved = [](const Tensor& tensor, int64_t count) {
    return const_cast<float*>(numbers(tensor, count, "what the forward saved"));
  };
  b.addend = saved(stream, b.rows * s.width);
  b.inner_stream = saved(inner_stream, b.rows * s.width);
  b.mean = saved(statistics, 4 * b.rows);
  b.rstd = b.mean + 2 * b.rows;
  b.qkv = saved(qkv, b.rows * s.qkv());
  b.attended = saved(attended, b.rows * s.attended());
  b.lse = saved(lse, b.rows * s.heads);
  b.up = saved(up, b.rows * s.mlp_width);
  b.grad_out = numbers(grad_out, b.rows * s.width, "grad_out");
  b.grad_inner_stream = numbers(grad_inner_stream, b.rows * s.width, "grad_inner_stream");
  Tensor grad_addend = empty_output(stream);
  Tensor grad_residual = addend_threshold > 0 ? empty_output(stream) : torch::stable::new_empty(stream, {0});
  b.grad_addend = grad_addend.mutable_data_ptr<float>();
  b.grad_residual = addend_threshold > 0 ? grad_residual.mutable_data_ptr<float>() : b.grad_addend;
  const int64_t count = gradient_floats(s), partials_count = static_cast<int64_t>(shares.size());
  Tensor grad_parameters = empty_output(stream, {count}), partials = empty_output(stream, {partials_count, count});
  float* const partial = partials.mutable_data_ptr<float>();
  const auto kernel = FASTSSL_KERNEL(pre_norm_block_backward);
  run(shares, stream, shares.empty() ? 0 : backward_scratch(s, shares[0].longest),
      [&](const Share& share, int64_t i, float* memory) {
        kernel(b, share, gradients_in(partial + i * count, s), memory);
      });
  const auto sum_kernel = FASTSSL_KERNEL(sum_blocks);
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    sum_kernel(partial, partials_count, count, false, grad_parameters.mutable_data_ptr<float>(), begin, end);
  });
  return {grad_addend, grad_residual, grad_parameters};
}

}  // namespace
}  // namespace pre_norm
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("pre_norm_block_forward", TORCH_BOX(&fastssl::pre_norm::forward));
  m.impl("pre_norm_block_backward", TORCH_BOX(&fastssl::pre_norm::backward));
}
