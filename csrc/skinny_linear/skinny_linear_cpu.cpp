// The linear map of few rows with a floating weight, which is read once for all of them; norms and activations.
#include "common/gelu.h"
#include "common/row_products.h"
#include "common/vec.h"
#include "skinny_linear/outputs.h"
#include "skinny_linear/skinny_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

using skinny::Activation;
using skinny::Call;

// The weight is read in pieces of four rows, kDepth columns at a time. A piece, and as many numbers of some rows of x,
// stay in the L1 cache; x stays there for kBlock rows of the weight. The order of sums is the same for any number of
// rows of x.
constexpr int64_t kDepth = 1024, kBlock = 16;

template <class Weight>
void multiply_block(const Call& a, int64_t begin, int64_t end) {
  want_ahead(a, begin);
  for (int64_t k = 0; k < a.inputs; k += kDepth) {
    const bool last = a.inputs - k <= kDepth;
    for (int64_t column = begin; column < end; column += kProductRows) {
      const int64_t left = end - column;
      int64_t ahead =
          kProductRows * a.inputs;  // the next piece is that of the next rows, or the first of the next columns
      if (left <= kProductRows) ahead = last ? left * a.inputs - k : kDepth - (column - begin) * a.inputs;
      multiply_rows(RowProducts<Weight>{.rows = static_cast<const Weight*>(a.weight) + column * a.inputs + k,
                                        .row_stride = a.inputs,
                                        .vectors = a.x + k,
                                        .vector_stride = a.inputs,
                                        .width = last ? a.inputs - k : kDepth,
                                        .out = a.products + column,
                                        .out_stride = a.outputs,
                                        .ahead = ahead,
                                        .add = k > 0},
                    left < kProductRows ? left : kProductRows, a.rows);
    }
  }
}

template <class Weight>
void multiply(const Call& a, int64_t begin, int64_t end) {
  for (; begin < end; begin += kBlock) multiply_block<Weight>(a, begin, end - begin < kBlock ? end : begin + kBlock);
}

FASTSSL_INLINE VecF silu(VecF x) {
  return x / (exp(-x) + 1.0f);
}

template <class Body>
FASTSSL_INLINE void finish(const Call& a, int64_t begin, int64_t end, Body body) {
  const int64_t width = a.activation == Activation::swiglu ? a.outputs / 2 : a.outputs;
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* products = a.products + row * a.outputs;
    float* y = a.y + row * width;
    const float* residual = a.residual ? a.residual + row * width : nullptr;
    const auto product = [&](int64_t j, auto part) {
      const VecF sum = load(products + j, part);
      return a.bias ? sum + load(a.bias + j, part) : sum;
    };
    for_each_vector(end - begin, [&](int64_t offset, auto part) {
      const int64_t j = begin + offset;
      VecF out = body(product(j, part), [&] { return product(width + j, part); });
      if (residual) out += load(residual + j, part);
      store(y + j, out, part);
    });
  }
}

}  // namespace

void skinny_normalise(const skinny::Norm& norm, const float* x, int64_t rows, int64_t width, float* out) {
  const float inverse_width = 1.0f / static_cast<float>(width);
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    float mean = 0.0f;
    if (norm.centred)
      mean = inverse_width * sum_over_row(width, [&](int64_t j, auto part) { return load(x + j, part); });
    const float square = sum_over_row(width, [&](int64_t j, auto part) {
      const VecF centred = pad(load(x + j, part) - mean, 0.0f, part);
      return centred * centred;
    });
    const float factor = 1.0f / __builtin_sqrtf(square * inverse_width + norm.eps);
    for_each_vector(width, [&](int64_t j, auto part) {
      VecF y = (load(x + j, part) - mean) * factor * load(norm.weight + j, part);
      if (norm.bias) y += load(norm.bias + j, part);
      store(out + j, y, part);
    });
  }
}

void skinny_products(const Call& a, int64_t begin, int64_t end) {
  return a.format == skinny::Weight::float32 ? multiply<float>(a, begin, end) : multiply<BFloat16>(a, begin, end);
}

void skinny_finish(const Call& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case Activation::none:
      if (!a.bias && !a.residual) return;  // the products are y
      return finish(a, begin, end, [](VecF x, auto) { return x; });
    case Activation::gelu:
      return finish(a, begin, end, [](VecF x, auto) { return exact_gelu(x); });
    case Activation::gelu_tanh:
      return finish(a, begin, end, [](VecF x, auto) { return tanh_gelu(x); });
    case Activation::silu:
      return finish(a, begin, end, [](VecF x, auto) { return silu(x); });
    case Activation::swiglu:
      return finish(a, begin, end, [](VecF x, auto up) { return silu(x) * up(); });
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
