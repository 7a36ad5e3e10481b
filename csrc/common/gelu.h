// GELU, x * Phi(x), and its slope: with the exact normal distribution Phi, to rounding or in eighteen operations, and
// by tanh.
#pragma once

#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

// c[0] + c[1] v + ..., even and odd powers apart: Horner's rule on all of them would wait for its own results.
template <int kTerms>
FASTSSL_INLINE VecF polynomial(VecF v, const float (&c)[kTerms]) {
  const VecF square = v * v;
  VecF high = broadcast(c[kTerms - 1]), low = broadcast(c[kTerms - 2]);
#pragma GCC unroll 20
  for (int i = kTerms - 3; i > 0; i -= 2) {
    high = high * square + c[i];
    low = low * square + c[i - 1];
  }
  if constexpr (kTerms % 2 == 0) return high * v + low;
  return (high * square + c[0]) + low * v;
}

// t Phi(t) to within rounding, 1e-7. Phi is 1/2 plus an odd entire function: t times a minimax polynomial in t^2,
// mapped to [-1, 1], with no exponential.
FASTSSL_INLINE VecF exact_gelu(VecF t) {
  constexpr float kLimit = 5.25f * 5.25f;  // 1 - Phi(5.25) is one unit in the last place
  constexpr float kOdd[] = {0.13465934991836548f,   -0.0671268180012703f,    0.04964578524231911f,
                            -0.03976341336965561f,  0.03203143924474716f,    -0.025041932240128517f,
                            0.018538646399974823f,  -0.012775251641869545f,  0.008417876437306404f,
                            -0.005448517855256796f, 0.0028923533391207457f,  -0.0010395362041890621f,
                            0.0006647384143434465f, -0.0006565832882188261f, 0.00023994823277462274f};
  const VecF square = minimum(broadcast(kLimit), t * t);  // in this order, so that NaN passes
  const VecF phi = t * polynomial(square * (2.0f / kLimit) - 1.0f, kOdd) + 0.5f;
  return t * minimum(broadcast(1.0f), maximum(VecF{}, phi));
}

// t (1 + tanh(z)) / 2 = t / (1 + power) with power = e^(-2z) and z = sqrt(2 / pi) (t + 0.044715 t^3).
inline constexpr float kTanhGeluLinear = 2.0f * 0.7978845608f, kTanhGeluCubic = kTanhGeluLinear * 0.044715f;

FASTSSL_INLINE VecF tanh_gelu_power(VecF t) {
  return exp(t * -(t * t * kTanhGeluCubic + kTanhGeluLinear));
}

FASTSSL_INLINE VecF tanh_gelu(VecF t) {
  return t / (tanh_gelu_power(t) + 1.0f);
}

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

// Within 2e-6 of x * Phi(x) for |x| <= 8, and within 3e-7 |x| beyond. Phi(x) = 1/2 + x Q(x^2) with Q of degree 12 in
// 2 (x / 5)^2 - 1, fitted by least squares, reweighted towards the smallest largest error; below -5 Phi is 0.
FASTSSL_INLINE VecF gelu(VecF x) {
  const VecF clamped = minimum(maximum(x, broadcast(-5.0f)), broadcast(5.0f));
  const VecF u = clamped * clamped * 0.08f - 1.0f;
  VecF q = broadcast(4.930438008e-04f);
  q = q * u - 1.514276257e-03f;
  q = q * u + 2.001760295e-03f;
  q = q * u - 2.915435238e-03f;
  q = q * u + 6.165443454e-03f;
  q = q * u - 1.097339112e-02f;
  q = q * u + 1.649768278e-02f;
  q = q * u - 2.333668806e-02f;
  q = q * u + 3.142621741e-02f;
  q = q * u - 4.043295234e-02f;
  q = q * u + 5.152142048e-02f;
  q = q * u - 7.029665262e-02f;
  q = q * u + 1.413637847e-01f;
  const VecF phi = clamped * q + 0.5f;
  return x * (x < broadcast(-5.0f) ? VecF{} : phi);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
