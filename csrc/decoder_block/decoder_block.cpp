#include "decoder_block/decoder_block.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/outputs.h"
#include "common/scratch.h"

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// x + out(attention(norm(x))), then + down(activation(up(norm(...)))).
void run(DecoderBlock& block, const std::vector<cached::Unit>& units, const float* x, int64_t rows, float* y) {
  skinny::Call &qkv = block.qkv, &out = block.out, &up = block.up, &down = block.down;
  cached::Call& attention = block.attention;
  const int64_t width = attention.width, row = qkv.outputs;
  Scratch scratch(Scratch::bytes_of<float>(rows * row) + Scratch::bytes_of<float>(rows * out.inputs) +
                  Scratch::bytes_of<float>(rows * out.outputs) + Scratch::bytes_of<float>(rows * up.width()));
  for (skinny::Call* map : {&qkv, &out, &up, &down}) map->rows = rows;
  qkv.x = x;
  qkv.y = scratch.take<float>(rows * row);
  skinny::run(qkv, block.attention_norm);
  attention.q = {qkv.y, row, width};
  attention.k = {qkv.y + attention.heads * width, row, width};
  attention.v = {attention.k.data + attention.key_heads * width, row, width};
  attention.out = scratch.take<float>(rows * out.inputs);
  cached::run(attention, units);
  out.x = attention.out;
  out.residual = x;
  out.y = scratch.take<float>(rows * out.outputs);
  skinny::run(out, std::nullopt);
  up.x = out.y;
  up.y = scratch.take<float>(rows * up.width());
  skinny::run(up, block.mlp_norm);
  down.x = up.y;
  down.residual = out.y;
  down.y = y;
  skinny::run(down, std::nullopt);
}

Tensor decoder_block(const Tensor& x, const Tensor& attention_norm_weight, const OptionalTensor& attention_norm_bias,
                     const Tensor& qkv_weight, const OptionalTensor& qkv_scale, const OptionalTensor& qkv_bias,
                     const Tensor& out_weight, const OptionalTensor& out_scale, const OptionalTensor& out_bias,
                     const Tensor& mlp_norm_weight, const OptionalTensor& mlp_norm_bias, const Tensor& up_weight,
                     const OptionalTensor& up_scale, const OptionalTensor& up_bias, const Tensor& down_weight,
                     const OptionalTensor& down_scale, const OptionalTensor& down_bias, Tensor k_cache, Tensor v_cache,
                     const Tensor& lengths, const OptionalTensor& cos, const OptionalTensor& sin, int64_t window,
                     double scale, double attention_eps, double mlp_eps, bool centred, int64_t activation,
                     int64_t instructions) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 2 && x.is_contiguous() && k_cache.dim() == 4,
                  "decoder_block: x");
  const int64_t sequences = x.size(0), inputs = x.size(1), width = k_cache.size(3);
  DecoderBlock block;
  block.qkv = skinny::call_of(qkv_weight, qkv_scale, qkv_bias, inputs, 0, instructions);
  const int64_t heads = width == 0 ? 0 : block.qkv.outputs / width - 2 * k_cache.size(1);
  STD_TORCH_CHECK(heads > 0 && (heads + 2 * k_cache.size(1)) * width == block.qkv.outputs, "decoder_block: qkv");
  block.attention = cached::call_of(k_cache, v_cache, cos, sin, sequences, heads, scale);
  block.out = skinny::call_of(out_weight, out_scale, out_bias, heads * width, 0, instructions);
  block.up = skinny::call_of(up_weight, up_scale, up_bias, inputs, activation, instructions);
  block.down = skinny::call_of(down_weight, down_scale, down_bias, block.up.width(), 0, instructions);
  STD_TORCH_CHECK(block.out.outputs == inputs && block.down.outputs == inputs, "decoder_block: outputs");
  block.attention_norm = skinny::norm_of(attention_norm_weight, attention_norm_bias, attention_eps, centred, inputs);
  block.mlp_norm = skinny::norm_of(mlp_norm_weight, mlp_norm_bias, mlp_eps, centred, inputs);
  const std::vector<cached::Unit> units = cached::units_of(block.attention, lengths, sequences, window);
  Tensor y = empty_output(x);
  if (sequences > 0) run(block, units, x.const_data_ptr<float>(), sequences, y.mutable_data_ptr<float>());
  return y;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("decoder_block", TORCH_BOX(&fastssl::decoder_block));
}
