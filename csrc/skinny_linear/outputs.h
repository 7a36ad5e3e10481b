// What stands beside the products of a linear map, and is read once for each of them.
#pragma once

#include "common/vec.h"
#include "skinny_linear/skinny_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Asks the memory for the scales, shifts and residuals of sixteen columns after the next ones. One line of each stands
// between kilobytes of weights, where no prefetcher expects it.
FASTSSL_INLINE void want_ahead(const skinny::Call& a, int64_t column) {
  constexpr int64_t kColumns = 32;
  if (a.weight_scale) __builtin_prefetch(a.weight_scale + column + kColumns, 0, 2);
  if (a.bias) __builtin_prefetch(a.bias + column + kColumns, 0, 2);
  if (a.activation == skinny::Activation::swiglu) return;
  for (int64_t row = 0; row < a.rows; ++row) {
    __builtin_prefetch(a.products + row * a.outputs + column + kColumns, 1, 2);
    if (a.residual) __builtin_prefetch(a.residual + row * a.outputs + column + kColumns, 0, 2);
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
