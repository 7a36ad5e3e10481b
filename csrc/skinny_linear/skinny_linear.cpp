#include "skinny_linear/skinny_linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/operands.h"
#include "common/outputs.h"
#include "common/scratch.h"

namespace fastssl {
namespace {

using skinny::Activation;
using skinny::Call;
using skinny::Instructions;
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
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->is_contiguous() && tensor->dim() == 1 &&
                      tensor->numel() == size,
                  "skinny_linear: ", name);
  return tensor->const_data_ptr<float>();
}

skinny::Weight format_of(const Tensor& weight, const OptionalTensor& scale, int64_t outputs, int64_t inputs) {
  const ScalarType type = weight.scalar_type();
  const int64_t size = scale ? divided_up(outputs, 32) * 32 * divided_up(inputs, 4) * 4 : outputs * inputs;
  STD_TORCH_CHECK(weight.is_contiguous() && weight.numel() == size && (scale || weight.dim() == 2) &&
                      (scale ? type == ScalarType::Byte : type == ScalarType::Float || type == ScalarType::BFloat16),
                  "skinny_linear: weight");
  if (scale) return skinny::Weight::int8;
  return type == ScalarType::Float ? skinny::Weight::float32 : skinny::Weight::bfloat16;
}

// What multiplies with a weight of some kind, and how many of its rows it takes at a time.
struct Products {
  void (*kernel)(const Call&, int64_t, int64_t);
  int64_t unit;
};

Products products_of(const Call& a) {
  if (a.format == skinny::Weight::int8) return {FASTSSL_KERNEL(skinny_products_int8), skinny::kPanelColumns};
  if (a.parts) return {FASTSSL_KERNEL(skinny_products_bf16), skinny::kPartOutputs};
  return {FASTSSL_KERNEL(skinny_products), skinny::kRowGroup};
}

// The products, and y where they are y, on PyTorch's threads: each reads its own part of the weight, once.
void run(const Call& a) {
  const bool gated = a.activation == Activation::swiglu;
  const Products products = products_of(a);
  const int64_t unit = products.unit;
  const int64_t element = a.format == skinny::Weight::int8 ? 1 : a.format == skinny::Weight::bfloat16 ? 2 : 4;
  const auto finish = FASTSSL_KERNEL(skinny_finish);
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / (unit * a.inputs * element));
  torch::stable::parallel_for(0, divided_up(a.outputs, unit), grain, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * unit, a.outputs);
    products.kernel(a, begin * unit, last);
    if (!gated) finish(a, begin * unit, last);
  });
  if (gated)  // a gate and what it lets through come from distant rows of the weight
    torch::stable::parallel_for(0, a.outputs / 2, std::max<int64_t>(1, kGrain / a.rows),
                                [&](int64_t begin, int64_t end) { finish(a, begin, end); });
}

// The best of the machine's instructions up to the wanted ones.
Instructions available(Instructions wanted) {
  if (cpu_capability() != CpuCapability::avx512) return Instructions::general;
  if (wanted == Instructions::amx && machine_has_amx()) return Instructions::amx;
  return wanted != Instructions::general && machine_has_vnni() ? Instructions::vnni : Instructions::general;
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto left = a.sizes(), right = b.sizes();
  return std::equal(left.begin(), left.end(), right.begin(), right.end());
}

// y, uninitialised.
Tensor output_of(const Tensor& x, int64_t outputs, Activation activation) {
  const bool gated = activation == Activation::swiglu;
  STD_TORCH_CHECK(activation >= Activation::none && activation <= Activation::swiglu && !(gated && outputs % 2 != 0),
                  "skinny_linear: activation");
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = gated ? outputs / 2 : outputs;
  return empty_output(x, sizes);
}

// Normalises and rounds x where that is wanted, and multiplies.
void prepare_and_run(Call& a, const std::optional<skinny::Norm>& norm) {
  const bool gated = a.activation == Activation::swiglu;
  const int64_t normalised = norm ? a.rows * a.inputs : 0, raw = gated ? a.rows * a.outputs : 0;
  const int64_t rounded = a.format == skinny::Weight::int8 ? a.rows : 0;
  constexpr int64_t kLine = 64;
  a.rounded.row_bytes = divided_up(a.inputs, 4) * 4;
  a.rounded.stride = (divided_up(a.inputs, kLine) | 1) * kLine;
  const bool in_parts = a.format == skinny::Weight::bfloat16 && a.instructions == Instructions::amx &&
                        a.inputs % 2 == 0 && a.outputs >= skinny::kPartOutputs;
  const int64_t words = in_parts ? divided_up(a.rows, skinny::kPartRows) * skinny::group_words(a.inputs) : 0;
  const int64_t bytes = 2 * divided_up(rounded, skinny::kRowPadding) * skinny::kRowPadding * a.rounded.stride;
  Scratch scratch(Scratch::bytes_of<float>(normalised) + Scratch::bytes_of<float>(raw) +
                  Scratch::bytes_of<float>(rounded) + Scratch::bytes_of<int32_t>(2 * rounded) +
                  Scratch::bytes_of<int8_t>(bytes) + Scratch::bytes_of<uint32_t>(words));
  float* const x = scratch.take<float>(normalised);
  float* const products = scratch.take<float>(raw);
  a.products = gated ? products : a.y;
  if (norm) {
    FASTSSL_KERNEL(skinny_normalise)(*norm, a.x, a.rows, a.inputs, x);
    a.x = x;
  }
  if (rounded > 0) {
    a.rounded.scales = scratch.take<float>(rounded);
    a.rounded.sums = scratch.take<int32_t>(2 * rounded);
    a.rounded.bytes = scratch.take<int8_t>(bytes);
    FASTSSL_KERNEL(skinny_round)(a.x, a.rows, a.inputs, a.rounded);
  }
  if (words > 0) {
    uint32_t* const parts = scratch.take<uint32_t>(words);
    FASTSSL_KERNEL(skinny_split)(a.x, a.rows, a.inputs, parts);
    a.parts = parts;
  }
  run(a);
}

Tensor skinny_linear(const Tensor& x_in, const Tensor& weight, const OptionalTensor& scale,
                     const OptionalTensor& bias_in, const OptionalTensor& norm_weight_in,
                     const OptionalTensor& norm_bias_in, double eps, bool centred, int64_t activation,
                     const OptionalTensor& residual_in, int64_t instructions) {
  STD_TORCH_CHECK(x_in.scalar_type() == ScalarType::Float && x_in.dim() > 0 && x_in.size(-1) > 0, "skinny_linear: x");
  const Tensor x = packed(x_in);
  const OptionalTensor bias = parameter(bias_in), residual = packed(residual_in);
  const OptionalTensor norm_weight = parameter(norm_weight_in), norm_bias = parameter(norm_bias_in);
  Call a{};
  a.x = x.const_data_ptr<float>();
  a.inputs = x.size(-1);
  a.rows = x.numel() / a.inputs;
  a.outputs = scale ? scale->numel() : weight.size(0);
  a.format = format_of(weight, scale, a.outputs, a.inputs);
  a.weight = weight.const_data_ptr();
  a.weight_scale = floats(scale, a.outputs, "scale");
  a.bias = floats(bias, a.outputs, "bias");
  a.activation = static_cast<Activation>(activation);
  a.instructions = available(static_cast<Instructions>(instructions));
  Tensor y = output_of(x, a.outputs, a.activation);
  a.y = y.mutable_data_ptr<float>();
  if (residual) {
    STD_TORCH_CHECK(residual->scalar_type() == ScalarType::Float && same_sizes(*residual, y),
                    "skinny_linear: residual");
    a.residual = residual->const_data_ptr<float>();
  }
  std::optional<skinny::Norm> norm;
  if (norm_weight)
    norm = skinny::Norm{.weight = floats(norm_weight, a.inputs, "norm weight"),
                        .bias = floats(norm_bias, a.inputs, "norm bias"),
                        .eps = static_cast<float>(eps),
                        .centred = centred};
  if (y.numel() > 0) prepare_and_run(a, norm);
  return y;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("skinny_linear", TORCH_BOX(&fastssl::skinny_linear));
}
