// Attention for CUDA tensors on compute capability 9.0; attention.cu serves all others, and what this one refuses.
#include <optional>
#include <tuple>

#include "attention/attention_tensors.cuh"
#include "attention/hopper_launch.cuh"

namespace fastssl::cuda {
namespace {

// Rows that copies of boxes reach: columns contiguous, everything else at multiples of 16 bytes, no row twice.
Tensor for_boxes(const Tensor& tensor) {
  bool fits = tensor.stride(-1) == 1 || tensor.size(-1) == 1;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i)
    fits &= tensor.size(i) == 1 || (tensor.stride(i) > 0 && tensor.stride(i) % kVector == 0);
  if (fits && all_aligned(tensor.data_ptr())) return tensor;
  const Tensor packed = torch::stable::contiguous(tensor);
  return all_aligned(packed.data_ptr()) ? packed : torch::stable::clone(packed);
}

void check_for_boxes(const Tensor& q, const Tensor& k) {
  STD_TORCH_CHECK(q.size(-1) % kVector == 0, "attention: a head width that is no multiple of 8");
  STD_TORCH_CHECK(q.numel() > 0 && k.numel() > 0, "attention: no queries or no keys");
}

SideOnHost side_of(const Tensor& rows, int64_t longest) {
  const int64_t count = rows.size(-3);
  return {count, rows.dim() == 3, static_cast<int>(rows.dim() == 3 && longest > 0 ? longest : count)};
}

// `longest_q`, `longest_k`: of one sequence, or 0 if that is not known; they decide how the work is divided, not what
// comes out. Dropout's decisions on the first `kept_tiles` x 128 keys of each query come out too, for the backward.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                           const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                           const OptionalTensor& alibi_slopes, int64_t window_left,
                                           int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed,
                                           double scale, int64_t longest_q, int64_t longest_k, int64_t kept_tiles) {
  check_shapes(q_in, k_in, v_in, std::nullopt);
  check_for_boxes(q_in, k_in);
  const Device device(q_in);
  const Tensor q = for_boxes(q_in), k = for_boxes(k_in), v = for_boxes(v_in);
  const Offsets offsets(q, cu_seqlens_q, cu_seqlens_k);
  const bool dense = q.dim() == 4;
  Tensor out = empty_output(q);
  Tensor lse = dense ? empty_output(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float)
                     : empty_output(q, {q.size(1), q.size(0)}, ScalarType::Float);
  HopperForwardArguments args{};
  static_cast<AttentionArguments&>(args) =
      arguments(q, k, v, out, lse, offsets, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  const SideOnHost queries = side_of(q, longest_q), keys = side_of(k, longest_k);
  args.kept.tiles = static_cast<int>(args.dropout.threshold > 0 ? kept_tiles : 0);
  Tensor kept = empty_output(q, {lay_out_kept_bits(args.kept, queries, args.sequences, args.heads)}, ScalarType::Int);
  if (args.kept.tiles > 0) args.kept.data = static_cast<uint32_t*>(kept.data_ptr());
  launch_hopper_forward(args, queries, keys, element_of(q, kOp), device.limits.multiprocessors, device.stream);
  return {out, lse, kept};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out_in, const OptionalTensor& grad_lse_in,
                                            const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                            const Tensor& out_in, const Tensor& lse, const Tensor& kept,
                                            const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                            const OptionalTensor& alibi_slopes, int64_t window_left,
                                            int64_t window_right, int64_t dropout_threshold, const OptionalTensor& seed,
                                            double scale, int64_t longest_q, int64_t longest_k, int64_t kept_tiles,
                                            bool together, bool one_pass) {
  check_shapes(q_in, k_in, v_in, std::nullopt);
  check_for_boxes(q_in, k_in);
  const Device device(q_in);
  const Tensor q = for_boxes(q_in), k = for_boxes(k_in), v = for_boxes(v_in);
  const Tensor grad_out = for_boxes(grad_out_in), out = for_boxes(out_in);
  const OptionalTensor grad_lse = packed(grad_lse_in);
  check_backward(grad_out, grad_lse, q, out, lse);
  const Offsets offsets(q, cu_seqlens_q, cu_seqlens_k);
  const Gradients g = gradients(q, k, together);
  HopperGradArguments args{};
  static_cast<AttentionArguments&>(args) =
      arguments(q, k, v, out, lse, offsets, alibi_slopes, window_left, window_right, dropout_threshold, seed, scale);
  args.grad_out = rows_of(grad_out);
  args.grad_q = g.q;
  args.grad_k = g.k;
  args.grad_v = g.v;
  if (grad_lse) args.grad_lse = grad_lse->const_data_ptr<float>();
  const SideOnHost queries = side_of(q, longest_q), keys = side_of(k, longest_k);
  args.kept.tiles = static_cast<int>(args.dropout.threshold > 0 ? kept_tiles : 0);
  STD_TORCH_CHECK(kept.numel() == lay_out_kept_bits(args.kept, queries, args.sequences, args.heads) &&
                      kept.scalar_type() == ScalarType::Int && kept.is_contiguous() && kept.device() == q.device(),
                  "attention: dropout's decisions are not those of this forward");
  if (args.kept.tiles > 0) args.kept.data = static_cast<uint32_t*>(kept.data_ptr());
  args.statistics.head = hopper_statistics_places(args, queries);
  const Tensor statistics = empty_output(q, {args.heads, args.statistics.head, 2}, ScalarType::Float);
  args.statistics.data = static_cast<float2*>(statistics.data_ptr());
  one_pass &= has_one_pass(args.width, args.dropout.threshold > 0);
  OptionalTensor sums, turns;
  if (one_pass) {
    const InTurnsSizes sizes = lay_out_in_turns(args.in_turns, args, args.statistics.head);
    sums = empty_output(q, {sizes.sums}, ScalarType::Float);
    turns = empty_output(q, {sizes.turns}, ScalarType::Int);
    args.in_turns.sums = static_cast<float4*>(sums->data_ptr());
    args.in_turns.turns = static_cast<uint32_t*>(turns->data_ptr());
    args.in_turns.taken = args.in_turns.turns + sizes.turns - 1;
  }
  launch_hopper_backward(args, queries, keys, element_of(q, kOp), one_pass, device.limits.multiprocessors,
                         device.stream);
  return {g.of_q, g.of_k, g.of_v};
}

}  // namespace
}  // namespace fastssl::cuda

STABLE_TORCH_LIBRARY_IMPL(fastssl, FASTSSL_GPU, m) {
  m.impl("attention_hopper_forward", TORCH_BOX(&fastssl::cuda::forward));
  m.impl("attention_hopper_backward", TORCH_BOX(&fastssl::cuda::backward));
}
