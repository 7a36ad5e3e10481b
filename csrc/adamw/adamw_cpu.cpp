// The AdamW update on the CPU: every number is read once and written once.
#include "adamw/adamw.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

void adamw(const AdamWStep& a, const AdamWRange& range) {
  const float rest1 = 1.0f - a.beta1, rest2 = 1.0f - a.beta2;
  for_each_vector(range.size, [&](int64_t j, auto part) {
    const VecF gradient = range.gradient ? load(range.gradient + j, part) * a.gradient_factor : VecF{};
    VecF average = load(range.exp_avg + j, part), square = load(range.exp_avg_sq + j, part);
    average += (gradient - average) * rest1;
    square = square * a.beta2 + gradient * gradient * rest2;
    const VecF direction = average / (sqrt(square) * a.inverse_root + a.eps);
    store(range.parameter + j, load(range.parameter + j, part) * a.decay - direction * a.step_size, part);
    store(range.exp_avg + j, average, part);
    store(range.exp_avg_sq + j, square, part);
  });
}

void scale_values(float* values, int64_t size, float factor) {
  for_each_vector(size, [&](int64_t j, auto part) { store(values + j, load(values + j, part) * factor, part); });
}

float sum_of_squares(const float* values, int64_t size) {
  return sum_over_row(size, [&](int64_t j, auto part) {
    const VecF value = load(values + j, part);
    return value * value;
  });
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
