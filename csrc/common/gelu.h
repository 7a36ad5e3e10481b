// GELU, x * Phi(x) with the exact normal distribution Phi, in eighteen operations and without an exponential.
#pragma once

#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

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
