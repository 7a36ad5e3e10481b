// The schema of every native operator: the table of contents of the compiled code.
// Implementations register themselves beside their code, for the devices that they serve.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastssl, m) {
  // The instruction set that the CPU kernels use; tests set a lower one to reach every compiled copy.
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> ()");

  // An uninitialised, packed tensor of the dtype of `like`, for a result of a product of PyTorch's that is one of ours.
  m.def("empty_output(Tensor like, int[] sizes) -> Tensor");
  // Gives the memory that large results of ours have left behind back to the system.
  m.def("release_kept_outputs() -> ()");
  // The sum, modulo 2^32, of a packed tensor's elements of four bytes, as words: a reading of memory, to be measured.
  m.def("sum_of_words(Tensor tensor) -> int");

  // y = LN(residual + dropout(x)). `sum` is empty where it would equal `x` and where it is not asked for; the
  // statistics are float32, one a row.
  m.def(
      "layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, float eps, int dropout_threshold, "
      "Tensor? seed, bool with_sum) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)");
  // No `grad_y`: nothing arrives through y. `grad_residual` is empty unless asked for apart from `grad_x`; the
  // parameter gradients are float32.
  m.def(
      "layer_norm_backward(Tensor? grad_y, Tensor? grad_sum, Tensor sum, Tensor weight, Tensor mean, Tensor rstd, "
      "int dropout_threshold, Tensor? seed, bool residual_apart) "
      "-> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");

  // y = gelu(x + bias), exact or by tanh; `grad_bias` is float32.
  m.def("bias_gelu_forward(Tensor x, Tensor bias, bool tanh) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad_y, Tensor x, Tensor bias, bool tanh) -> (Tensor grad_x, Tensor grad_bias)");

  // Packed (N, H, D) or dense (B, T, H, D). lse is float32, (H, N) or (B, H, T). Without cu_seqlens_k, cu_seqlens_q
  // serves for both.
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? bias, "
      "Tensor? alibi_slopes, int window_left, int window_right, int dropout_threshold, Tensor? seed, float scale) "
      "-> (Tensor out, Tensor lse)");
  // `together`: `grad_q` holds the heads of q, k and v side by side and `grad_k` and `grad_v` are empty, for q, k and v
  // that are slices of one tensor. `grad_bias` is float32, empty unless needed.
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? bias, Tensor? alibi_slopes, int window_left, "
      "int window_right, int dropout_threshold, Tensor? seed, float scale, bool bias_needs_grad, bool together) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias)");

  // Losses of a chunk of logits, which become their own gradient; logits float32 or bfloat16, on a GPU float16 too and
  // their rows apart; the rest float32. `grad_bias` is added to (`accumulate`) or written.
  m.def(
      "softmax_cross_entropy_(Tensor(a!) logits, Tensor? bias, Tensor targets, Tensor? row_grads, "
      "float label_smoothing, float z_loss, float softcap, bool with_gradient, Tensor(b!) losses, Tensor(c!) lse, "
      "Tensor(d!) correct, Tensor(e!)? grad_bias, bool accumulate) -> ()");

  // x times a float32 number that stays on the GPU; where that is 1, nothing is touched. For CUDA tensors alone.
  m.def("scale_(Tensor(a!) x, Tensor factor) -> ()");

  // One step of AdamW, in place, on float32 tensors; gradients count `gradient_factor` times.
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, int step, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, float gradient_factor) -> ()");
  // The same for one matrix whose gradient is `values` at `rows`, zero elsewhere; `touched` (rows) is added to.
  m.def(
      "adamw_rows_(Tensor(a!) parameter, Tensor rows, Tensor values, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
      "Tensor(d!) touched, int step, float lr, float beta1, float beta2, float eps, float weight_decay, "
      "float gradient_factor) -> ()");
  // The sum of the squares of all numbers, float64.
  m.def("sum_of_squares(Tensor[] tensors) -> Tensor");

  // 8-bit linear map: rows of x (rows, inputs), float32 or bfloat16, are quantised on the way; `packed` holds the
  // weights as `fastssl.ops.quantized_linear` packs them. `vnni` allows the instructions for it where there are any.
  m.def(
      "quantized_linear(Tensor x, Tensor packed, Tensor scale, Tensor sum, Tensor? bias, bool gelu, bool vnni) -> "
      "Tensor");
}

// What only GPUs of compute capability 9.0 have.
STABLE_TORCH_LIBRARY_FRAGMENT(fastssl, m) {
  // Attention as above, without a bias. `longest_q`, `longest_k`: of one sequence, or 0 for not known.
  // `kept` has dropout's decisions on the first `kept_tiles` x 128 keys of each query, which must be all, or none.
  m.def(
      "attention_hopper_forward(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
      "Tensor? alibi_slopes, int window_left, int window_right, int dropout_threshold, Tensor? seed, float scale, "
      "int longest_q, int longest_k, int kept_tiles) -> (Tensor out, Tensor lse, Tensor kept)");
  m.def(
      "attention_hopper_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor kept, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? alibi_slopes, int window_left, "
      "int window_right, int dropout_threshold, Tensor? seed, float scale, int longest_q, int longest_k, "
      "int kept_tiles, bool together, bool one_pass) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

// What only small models need.
STABLE_TORCH_LIBRARY_FRAGMENT(fastssl, m) {
  // A pre-norm transformer block, packed rows (N, E) float32. `parameters`: weight and bias of attention's norm, q k v,
  // attention's output, the network's norm, up and down; a bias that is not there is empty. Besides `out` and
  // `inner_stream` come what the backward needs; `stream` is empty where it would equal `addend`.
  m.def(
      "pre_norm_block_forward(Tensor addend, Tensor? residual, Tensor[] parameters, Tensor cu_seqlens, int heads, "
      "int head_width, int window_left, int window_right, float scale, float attention_eps, float mlp_eps, bool tanh, "
      "int addend_threshold, Tensor? addend_seed, int attention_threshold, Tensor? attention_seed, "
      "int output_threshold, Tensor? output_seed, Tensor? cos, Tensor? sin) -> (Tensor out, Tensor inner_stream, "
      "Tensor stream, "
      "Tensor statistics, Tensor qkv, Tensor attended, Tensor lse, Tensor up)");
  // `grad_residual` is empty where it would equal `grad_addend`. `grad_parameters` has all parameters one behind the
  // other, biases that are not there too.
  m.def(
      "pre_norm_block_backward(Tensor grad_out, Tensor? grad_inner_stream, Tensor inner_stream, Tensor stream, "
      "Tensor statistics, Tensor qkv, Tensor attended, Tensor lse, Tensor up, Tensor[] parameters, Tensor cu_seqlens, "
      "int heads, int head_width, int window_left, int window_right, float scale, float attention_eps, float mlp_eps, "
      "bool tanh, int addend_threshold, Tensor? addend_seed, int attention_threshold, Tensor? attention_seed, "
      "int output_threshold, Tensor? output_seed, Tensor? cos, Tensor? sin) "
      "-> (Tensor grad_addend, Tensor grad_residual, Tensor grad_parameters)");
}

// What only generation needs.
STABLE_TORCH_LIBRARY_FRAGMENT(fastssl, m) {
  // y = activation(norm(x) W^T + bias) + residual for few rows of x, float32. The weight is float32 or bfloat16, or,
  // with `scale`, packed as for quantized_linear. `centred`: a layer norm, else an RMS norm. `instructions`: the best
  // that may multiply bytes, see csrc/skinny_linear/skinny_linear.h.
  m.def(
      "skinny_linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
      "float eps, bool centred, int activation, Tensor? residual, int instructions) -> Tensor");

  // One new token a sequence: its key and value are written to the caches (B, H_k, S, D), float32 or bfloat16, behind
  // the `lengths` (B) tokens that are there, in a ring; it attends to them and to itself. `window` 0: to all.
  m.def(
      "cached_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lengths, "
      "int window, float scale, Tensor? cos, Tensor? sin) -> Tensor");

  // A pre-norm block of a decoder for one new token a sequence, x (B, E): skinny_linear, cached_attention and
  // skinny_linear in one call. All parameters are packed, and float32 but for the weights of the four maps.
  m.def(
      "decoder_block(Tensor x, Tensor attention_norm_weight, Tensor? attention_norm_bias, Tensor qkv_weight, "
      "Tensor? qkv_scale, Tensor? qkv_bias, Tensor out_weight, Tensor? out_scale, Tensor? out_bias, "
      "Tensor mlp_norm_weight, Tensor? mlp_norm_bias, Tensor up_weight, Tensor? up_scale, Tensor? up_bias, "
      "Tensor down_weight, Tensor? down_scale, Tensor? down_bias, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor lengths, Tensor? cos, Tensor? sin, int window, float scale, float attention_eps, float mlp_eps, "
      "bool centred, int activation, int instructions) -> Tensor");
}
