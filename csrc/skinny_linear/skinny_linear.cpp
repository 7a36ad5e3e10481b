#include "skinny_linear/skinny_linear.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/operands.h"
#include "common/outputs.h"
#include "common/scratch.h"

namespace fastssl {
namespace {

using skinny::Activation;
using skinny::Call;
using skinny::RoundedRows;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBytesPerThread = 1 << 16;  // of the weight, that are worth a thread

int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

const float* floats(const OptionalTensor& tensor, int64_t size, const char* name) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->is_contiguous() && tensor->numel() == size,
                  "skinny_linear: ", name);
  return tensor->const_data_ptr<float>();
}

skinny::Weight format_of(const Tensor& weight, const OptionalTensor& scale, int64_t outputs, int64_t inputs) {
  const ScalarType type = weight.scalar_type();
  const int64_t size = scale ? divided_up(outputs, 32) * 32 * divided_up(inputs, 4) * 4 : outputs * inputs;
  STD_TORCH_CHECK(weight.is_contiguous() && weight.numel() == size &&
                      (scale ? type == ScalarType::Byte : type == ScalarType::Float || type == ScalarType::BFloat16),
                  "skinny_linear: weight");
  if (scale) return skinny::Weight::int8;
  return type == ScalarType::Float ? skinny::Weight::float32 : skinny::Weight::bfloat16;
}

// The products, and y where they are y, on PyTorch's threads: each reads its own part of the weight, once.
void run(const Call& a) {
  const bool int8 = a.format == skinny::Weight::int8, gated = a.activation == Activation::swiglu;
  const int64_t unit = int8 ? skinny::kPanelColumns : skinny::kRowGroup;
  const int64_t unit_bytes = unit * a.inputs * (int8 ? 1 : a.format == skinny::Weight::bfloat16 ? 2 : 4);
  const auto products = int8 ? FASTSSL_KERNEL(skinny_products_int8) : FASTSSL_KERNEL(skinny_products);
  const auto finish = FASTSSL_KERNEL(skinny_finish);
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / unit_bytes);
  torch::stable::parallel_for(0, divided_up(a.outputs, unit), grain, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * unit, a.outputs);
    products(a, begin * unit, last);
    if (!gated) finish(a, begin * unit, last);
  });
  if (gated)  // a gate and what it lets through come from distant rows of the weight
    torch::stable::parallel_for(0, a.outputs / 2, std::max<int64_t>(1, kGrain / a.rows),
                                [&](int64_t begin, int64_t end) { finish(a, begin, end); });
}

Tensor skinny_linear(const Tensor& x_in, const Tensor& weight, const OptionalTensor& scale,
                     const OptionalTensor& bias_in, const OptionalTensor& norm_weight_in,
                     const OptionalTensor& norm_bias_in, double eps, bool centred, int64_t activation,
                     const OptionalTensor& residual_in, bool vnni) {
  const Tensor x = packed(x_in);
  const OptionalTensor bias = parameter(bias_in), residual = packed(residual_in);
  const OptionalTensor norm_weight = parameter(norm_weight_in), norm_bias = parameter(norm_bias_in);
  const int64_t inputs = x.size(-1), rows = x.numel() / inputs;
  const int64_t outputs = scale ? scale->numel() : weight.size(0);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "skinny_linear: dtype of x");
  Call a{};
  a.weight = weight.const_data_ptr();
  a.weight_scale = floats(scale, outputs, "scale");
  a.bias = floats(bias, outputs, "bias");
  a.rows = rows;
  a.inputs = inputs;
  a.outputs = outputs;
  a.format = format_of(weight, scale, outputs, inputs);
  a.activation = static_cast<Activation>(activation);
  a.vnni = vnni && machine_has_vnni();
  const bool gated = a.activation == Activation::swiglu, int8 = a.format == skinny::Weight::int8;
  const int64_t width = gated ? outputs / 2 : outputs;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = width;
  Tensor y = empty_output(x, sizes);
  if (rows == 0) return y;
  a.residual = floats(residual, rows * width, "residual");
  a.y = y.mutable_data_ptr<float>();
  a.rounded.row_bytes = divided_up(inputs, 4) * 4;
  const int64_t normalised = norm_weight ? rows * inputs : 0, raw = gated ? rows * outputs : 0;
  const int64_t rounded = int8 ? rows : 0;
  Scratch scratch(Scratch::bytes_of<float>(normalised) + Scratch::bytes_of<float>(raw) +
                  Scratch::bytes_of<float>(rounded) + Scratch::bytes_of<int32_t>(2 * rounded) +
                  Scratch::bytes_of<int8_t>(2 * rounded * a.rounded.row_bytes));
  a.x = x.const_data_ptr<float>();
  if (norm_weight) {
    float* const out = scratch.take<float>(normalised);
    const skinny::Norm norm{.weight = floats(norm_weight, inputs, "norm weight"),
                            .bias = floats(norm_bias, inputs, "norm bias"),
                            .eps = static_cast<float>(eps),
                            .centred = centred};
    FASTSSL_KERNEL(skinny_normalise)(norm, a.x, rows, inputs, out);
    a.x = out;
  }
  a.products = gated ? scratch.take<float>(raw) : a.y;
  if (int8) {
    a.rounded.scales = scratch.take<float>(rounded);
    a.rounded.sums = scratch.take<int32_t>(2 * rounded);
    a.rounded.bytes = scratch.take<int8_t>(2 * rounded * a.rounded.row_bytes);
    FASTSSL_KERNEL(skinny_round)(a.x, rows, inputs, a.rounded);
  }
  run(a);
  return y;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("skinny_linear", TORCH_BOX(&fastssl::skinny_linear));
}
