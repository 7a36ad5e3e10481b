// Attention for CUDA tensors; attention.cpp is its twin for CPU tensors.
#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "attention/attention_launch.cuh"
#include "cuda/tensors.h"

namespace fastssl::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "attention";

// Columns must be contiguous; rows and heads may be slices of a wider tensor.
Tensor with_contiguous_columns(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// (N, H, D) or (B, T, H, D).
AttentionRows rows_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.dim() == 4 ? tensor.stride(0) : 0, tensor.stride(-3), tensor.stride(-2)};
}

bool is_aligned(const AttentionRows& rows) {
  return all_aligned(rows.data) && rows.sequence % kVector == 0 && rows.row % kVector == 0 && rows.head % kVector == 0;
}

SequenceRows sequence_rows(const Tensor& rows, const OptionalTensor& offsets) {
  if (offsets) return {offsets->const_data_ptr<int32_t>(), 0};
  return {nullptr, static_cast<int>(rows.size(1))};
}

// cu_seqlens as the kernels read them, where they lie: the host does not look inside.
struct Offsets {
  OptionalTensor q, k;

  Offsets(const Tensor& like, const OptionalTensor& q_in, const OptionalTensor& k_in)
      : q(packed(q_in)), k(k_in ? packed(k_in) : q) {
    if (like.dim() == 4) return;
    STD_TORCH_CHECK(q && q->scalar_type() == ScalarType::Int && k->scalar_type() == ScalarType::Int &&
                        q->numel() >= 1 && q->numel() == k->numel(),
                    "attention: cu_seqlens must be int32 tensors of one length");
    STD_TORCH_CHECK(q->device() == like.device() && k->device() == like.device(),
                    "attention: cu_seqlens must be on the device of the other tensors");
  }
};

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias) {
  STD_TORCH_CHECK(q.dim() == k.dim() && q.size(-1) == k.size(-1) && k.sizes().equals(v.sizes()) && k.size(-2) > 0 &&
                      q.size(-2) % k.size(-2) == 0 && (q.dim() == 3 || q.size(0) == k.size(0)),
                  "attention: shapes of q, k and v");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                  "attention: dtypes of q, k and v");
  STD_TORCH_CHECK(q.scalar_type() == ScalarType::BFloat16 || q.scalar_type() == ScalarType::Half,
                  "attention: the CUDA kernels take bfloat16 and float16");
  STD_TORCH_CHECK(!bias, "attention: the CUDA kernels take no bias");
  STD_TORCH_CHECK(q.size(-1) <= kMaxAttentionWidth && q.size(-2) <= 65535, "attention: head width or number of heads");
  constexpr int64_t kMaxRows = std::numeric_limits<int>::max() / 2;
  STD_TORCH_CHECK(q.size(-3) <= kMaxRows && k.size(-3) <= kMaxRows, "attention: number of rows");
}

int window_side(int64_t keys) {
  return static_cast<int>(std::min<int64_t>(keys, std::numeric_limits<int>::max()));
}

AttentionArguments arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                             const Offsets& offsets, const OptionalTensor& alibi, int64_t window_left,
                             int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed,
                             double scale) {
  STD_TORCH_CHECK(!alibi || (alibi->scalar_type() == ScalarType::Float && alibi->is_contiguous() &&
                             alibi->numel() == q.size(-2) && alibi->device() == q.device()),
                  "attention: alibi_slopes must be H contiguous float32 numbers on the device of the other tensors");
  AttentionArguments a{};
  a.q = rows_of(q);
  a.k = rows_of(k);
  a.v = rows_of(v);
  a.out = rows_of(out);
  a.lse = static_cast<float*>(lse.data_ptr());
  a.statistics_sequence = lse.dim() == 3 ? lse.size(1) * lse.size(2) : 0;
  a.statistics_head = lse.size(-1);
  const bool dense = q.dim() == 4;
  a.queries = sequence_rows(q, dense ? std::nullopt : offsets.q);
  a.keys = sequence_rows(k, dense ? std::nullopt : offsets.k);
  a.sequences = static_cast<int>(dense ? q.size(0) : offsets.q->numel() - 1);
  a.width = static_cast<int>(q.size(-1));
  a.heads = static_cast<int>(q.size(-2));
  a.heads_per_key = static_cast<int>(q.size(-2) / k.size(-2));
  a.aligned = a.width % kVector == 0 && is_aligned(a.q) && is_aligned(a.k) && is_aligned(a.v) && is_aligned(a.out);
  a.alibi = alibi ? alibi->const_data_ptr<float>() : nullptr;
  a.window_left = window_side(window_left);
  a.window_right = window_side(window_right);
  a.scale = static_cast<float>(scale);
  a.dropout = dropout_of(kOp, dropout_threshold, seed, q);
  return a;
}

// Queries of all sequences of packed input; dense input has its number of sequences beside it.
int64_t packed_rows(const Tensor& tensor) {
  return tensor.dim() == 3 ? tensor.size(0) : 0;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                   const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                   const OptionalTensor& bias, const OptionalTensor& alibi_slopes, int64_t window_left,
                                   int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed,
                                   double scale) {
  check_shapes(q_in, k_in, v_in, bias);
  const Device device(q_in);
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const Offsets offsets(q, cu_seqlens_q, cu_seqlens_k);
  const bool dense = q.dim() == 4;
  Tensor out = empty_output(q);
  Tensor lse = dense ? empty_output(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float)
                     : empty_output(q, {q.size(1), q.size(0)}, ScalarType::Float);
  const AttentionArguments args =
      arguments(q, k, v, out, lse, offsets, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  launch_attention_forward(args, packed_rows(q), element_of(q, kOp), device.stream);
  return {out, lse};
}

// The gradients of q, k and v: apart, or in one buffer (rows, H + 2 H_k, D); see csrc/registration.cpp.
struct Gradients {
  Tensor of_q, of_k, of_v;
  AttentionRows q, k, v;
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
  Gradients g{empty_output(q, sizes, q.scalar_type()), nothing(k), nothing(k), {}, {}, {}};
  const auto from_head = [&](int64_t head) {
    AttentionRows rows = rows_of(g.of_q);
    rows.data = static_cast<uint16_t*>(rows.data) + head * rows.head;
    return rows;
  };
  g.q = from_head(0);
  g.k = from_head(heads);
  g.v = from_head(heads + key_heads);
  return g;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out_in, const OptionalTensor& grad_lse_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& v_in, const Tensor& out_in, const Tensor& lse, const OptionalTensor& cu_seqlens_q,
    const OptionalTensor& cu_seqlens_k, const OptionalTensor& bias, const OptionalTensor& alibi_slopes,
    int64_t window_left, int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed, double scale,
    bool bias_needs_grad, bool together) {
  check_shapes(q_in, k_in, v_in, bias);
  const Device device(q_in);
  const Tensor q = with_contiguous_columns(q_in), k = with_contiguous_columns(k_in), v = with_contiguous_columns(v_in);
  const Tensor grad_out = with_contiguous_columns(grad_out_in), out = with_contiguous_columns(out_in);
  const OptionalTensor grad_lse = grad_lse_in ? OptionalTensor(torch::stable::contiguous(*grad_lse_in)) : std::nullopt;
  STD_TORCH_CHECK(grad_out.sizes().equals(q.sizes()) && out.sizes().equals(q.sizes()) && lse.is_contiguous() &&
                      lse.numel() * q.size(-1) == q.numel() && (!grad_lse || grad_lse->sizes().equals(lse.sizes())),
                  "attention: shapes of the backward");
  STD_TORCH_CHECK(grad_out.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type() &&
                      lse.scalar_type() == ScalarType::Float &&
                      (!grad_lse || grad_lse->scalar_type() == ScalarType::Float) && !bias_needs_grad,
                  "attention: dtypes of the backward");
  const Offsets offsets(q, cu_seqlens_q, cu_seqlens_k);
  const Gradients g = gradients(q, k, together);
  AttentionGradArguments args{};
  static_cast<AttentionArguments&>(args) =
      arguments(q, k, v, out, lse, offsets, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  args.grad_out = rows_of(grad_out);
  args.grad_q = g.q;
  args.grad_k = g.k;
  args.grad_v = g.v;
  args.aligned &= is_aligned(args.grad_out) && is_aligned(g.q) && is_aligned(g.k) && is_aligned(g.v);
  if (grad_lse) args.grad_lse = grad_lse->const_data_ptr<float>();
  args.statistics.head = attention_statistics_places(args, packed_rows(q));
  const Tensor statistics = empty_output(q, {args.heads, args.statistics.head, 2}, ScalarType::Float);
  args.statistics.data = static_cast<float2*>(statistics.data_ptr());
  launch_attention_backward(args, packed_rows(q), packed_rows(k), element_of(q, kOp), device.stream);
  return {g.of_q, g.of_k, g.of_v, empty_output(lse, {0}, ScalarType::Float)};
}

}  // namespace
}  // namespace fastssl::cuda

STABLE_TORCH_LIBRARY_IMPL(fastssl, FASTSSL_GPU, m) {
  m.impl("attention_forward", TORCH_BOX(&fastssl::cuda::forward));
  m.impl("attention_backward", TORCH_BOX(&fastssl::cuda::backward));
}
