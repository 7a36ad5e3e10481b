// Bias + GELU on the CPU: one pass over memory in each direction.
#include "bias_gelu/bias_gelu.h"
#include "common/gelu.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

// GELU(t) = t Phi(t) and its derivative Phi(t) + t phi(t), where Phi is the normal distribution function. Both factors
// are 1/2 plus an odd entire function: t times a minimax polynomial in t^2, mapped to [-1, 1], with no exponential.
struct ExactGelu {
  static FASTSSL_INLINE VecF value(VecF t) {
    return exact_gelu(t);
  }

  static FASTSSL_INLINE VecF slope(VecF t) {
    constexpr float kLimit = 5.75f;  // beyond it the slope is 0 or 1 to within 2e-7
    constexpr float kOdd[] = {0.1230718269944191f,    -0.06228140741586685f, 0.04936722293496132f,
                              -0.04729423671960831f,  0.05170648545026779f,  -0.05952443927526474f,
                              0.06675459444522858f,   -0.07057825475931168f, 0.06938504427671432f,
                              -0.059359144419431686f, 0.043163035064935684f, -0.03492863476276398f,
                              0.03169304132461548f,   -0.01622007228434086f, 0.001062173512764275f,
                              -0.002832400379702449f, 0.006217052228748798f, -0.002445339225232601f};
    t = minimum(broadcast(kLimit), maximum(broadcast(-kLimit), t));
    return t * polynomial(t * t * (2.0f / (kLimit * kLimit)) - 1.0f, kOdd) + 0.5f;
  }
};

// t (1 + tanh(z)) / 2 = t s with s = 1 / (1 + e^(-2z)) and z = sqrt(2 / pi) (t + 0.044715 t^3).
struct TanhGelu {
  static FASTSSL_INLINE VecF value(VecF t) {
    return tanh_gelu(t);
  }

  static FASTSSL_INLINE VecF slope(VecF t) {
    t = minimum(broadcast(10.0f), maximum(broadcast(-10.0f), t));  // lest the cube meets a zero as infinity
    const VecF e = tanh_gelu_power(t), s = 1.0f / (e + 1.0f);
    // s (1 - s) = e s^2, whose small values keep their digits.
    return s + t * (e * s) * s * (t * t * (3.0f * kTanhGeluCubic) + kTanhGeluLinear);
  }
};

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
