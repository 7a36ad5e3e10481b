// Attention for CUDA tensors; attention.cpp is its twin for CPU tensors.
#include <optional>
#include <tuple>

#include "attention/attention_launch.cuh"
#include "attention/attention_tensors.cuh"

namespace fastssl::cuda {
namespace {

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
  check_backward(grad_out, grad_lse, q, out, lse);
  STD_TORCH_CHECK(!bias_needs_grad, "attention: the CUDA kernels have no gradient of a bias");
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
