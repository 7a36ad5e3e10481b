// Tensors of attention on the GPU as its launchers take them; attention.cu and attention_sm90a.cu share this.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "attention/attention_backward_kernels.cuh"
#include "cuda/tensors.h"

namespace fastssl::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline constexpr const char* kOp = "attention";
inline constexpr int kMaxAttentionWidth = 128;

// Columns must be contiguous; rows and heads may be slices of a wider tensor.
inline Tensor with_contiguous_columns(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// (N, H, D) or (B, T, H, D).
inline AttentionRows rows_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.dim() == 4 ? tensor.stride(0) : 0, tensor.stride(-3), tensor.stride(-2)};
}

inline bool is_aligned(const AttentionRows& rows) {
  return all_aligned(rows.data) && rows.sequence % kVector == 0 && rows.row % kVector == 0 && rows.head % kVector == 0;
}

inline SequenceRows sequence_rows(const Tensor& rows, const OptionalTensor& offsets) {
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

inline void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias) {
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

inline int window_side(int64_t keys) {
  return static_cast<int>(std::min<int64_t>(keys, std::numeric_limits<int>::max()));
}

inline AttentionArguments arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                    const Tensor& lse, const Offsets& offsets, const OptionalTensor& alibi,
                                    int64_t window_left, int64_t window_right, int64_t dropout_threshold,
                                    const OptionalTensor& seed, double scale) {
  STD_TORCH_CHECK(!alibi || (alibi->scalar_type() == ScalarType::Float && alibi->is_contiguous() &&
                             alibi->numel() == q.size(-2) && alibi->device() == q.device()),
                  "attention: alibi_slopes must be H contiguous float32 numbers on the device of the other tensors");
  STD_TORCH_CHECK(window_left >= 0 && window_right >= 0, "attention: window");
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
inline int64_t packed_rows(const Tensor& tensor) {
  return tensor.dim() == 3 ? tensor.size(0) : 0;
}

inline void check_backward(const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& out,
                           const Tensor& lse) {
  STD_TORCH_CHECK(grad_out.sizes().equals(q.sizes()) && out.sizes().equals(q.sizes()) && lse.is_contiguous() &&
                      lse.numel() * q.size(-1) == q.numel() && (!grad_lse || grad_lse->sizes().equals(lse.sizes())),
                  "attention: shapes of the backward");
  STD_TORCH_CHECK(grad_out.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type() &&
                      lse.scalar_type() == ScalarType::Float &&
                      (!grad_lse || grad_lse->scalar_type() == ScalarType::Float),
                  "attention: dtypes of the backward");
}

// The gradients of q, k and v: apart, or in one buffer (rows, H + 2 H_k, D); see csrc/registration.cpp.
struct Gradients {
  Tensor of_q, of_k, of_v;
  AttentionRows q, k, v;
};

inline Gradients gradients(const Tensor& q, const Tensor& k, bool together) {
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

}  // namespace fastssl::cuda
