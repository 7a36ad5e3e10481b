// Bias + GELU on the CPU: one pass over memory in each direction.
#include "bias_gelu/bias_gelu.h"
#include "common/gelu.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

template <class Gelu, class X>
void forward_rows(const BiasGeluForward& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(a.x) + row * a.width;
    X* y = static_cast<X*>(a.y) + row * a.width;
    for_each_vector(a.width, [&](int64_t j, auto part) {
      store(y + j, Gelu::value(load(x + j, part) + load(a.bias + j, part)), part);
    });
  }
}

template <class Gelu, class X>
void backward_blocks(const BiasGeluBackward& a, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* grad_bias = a.grad_bias + block * a.width;
    std::memset(grad_bias, 0, sizeof(float) * static_cast<uint64_t>(a.width));
    const int64_t first = block * a.rows_per_block;
    const int64_t last = first + a.rows_per_block < a.rows ? first + a.rows_per_block : a.rows;
    for (int64_t row = first; row < last; ++row) {
      const X* grad_y = static_cast<const X*>(a.grad_y) + row * a.width;
      const X* x = static_cast<const X*>(a.x) + row * a.width;
      X* grad_x = static_cast<X*>(a.grad_x) + row * a.width;
      for_each_vector(a.width, [&](int64_t j, auto part) {
        const VecF grad = load(grad_y + j, part) * Gelu::slope(load(x + j, part) + load(a.bias + j, part));
        store(grad_x + j, grad, part);
        store(grad_bias + j, load(grad_bias + j, part) + grad, part);
      });
    }
  }
}

template <class Gelu>
void forward_of(const BiasGeluForward& a, int64_t begin, int64_t end) {
  if (a.type == Element::float32) return forward_rows<Gelu, float>(a, begin, end);
  if (a.type == Element::bfloat16) return forward_rows<Gelu, BFloat16>(a, begin, end);
  return forward_rows<Gelu, Half>(a, begin, end);
}

template <class Gelu>
void backward_of(const BiasGeluBackward& a, int64_t begin, int64_t end) {
  if (a.type == Element::float32) return backward_blocks<Gelu, float>(a, begin, end);
  if (a.type == Element::bfloat16) return backward_blocks<Gelu, BFloat16>(a, begin, end);
  return backward_blocks<Gelu, Half>(a, begin, end);
}

}  // namespace

void bias_gelu_forward(const BiasGeluForward& a, int64_t begin, int64_t end) {
  return a.tanh ? forward_of<TanhGelu>(a, begin, end) : forward_of<ExactGelu>(a, begin, end);
}

void bias_gelu_backward(const BiasGeluBackward& a, int64_t begin, int64_t end) {
  return a.tanh ? backward_of<TanhGelu>(a, begin, end) : backward_of<ExactGelu>(a, begin, end);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
