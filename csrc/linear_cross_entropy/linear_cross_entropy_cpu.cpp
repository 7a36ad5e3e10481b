// Softmax cross-entropy on the CPU: a row of logits comes once from memory, stays in L2, and leaves as its gradient.
#include "common/vec.h"
#include "linear_cross_entropy/linear_cross_entropy.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

// Adds the bias and applies the softcap in place; returns the largest logit, as stored.
template <class Logit>
float form_logits(const SoftmaxCrossEntropy& a, Logit* logits) {
  const float *bias = a.bias, softcap = a.softcap, inverse_cap = softcap > 0.0f ? 1.0f / softcap : 0.0f;
  if (!bias && softcap == 0.0f)
    return max_over_row(a.classes,
                        [&](int64_t j, auto part) { return pad(load(logits + j, part), -__builtin_inff(), part); });
  return max_over_row(a.classes, [&](int64_t j, auto part) {
    VecF logit = load(logits + j, part);
    if (bias) logit += load(bias + j, part);
    if (softcap > 0.0f) logit = softcap * tanh(logit * inverse_cap);
    store(logits + j, logit, part);
    return pad(rounded(logit, logits), -__builtin_inff(), part);
  });
}

// Whether the target is the first of the largest logits.
template <class Logit>
bool is_first_maximum(const Logit* logits, int64_t target, float maximum) {
  if (!(load_scalar(logits + target) == maximum)) return false;
  const float before =
      max_over_row(target, [&](int64_t j, auto part) { return pad(load(logits + j, part), -__builtin_inff(), part); });
  return before < maximum;
}

// Turns the logits l of one row into the gradient of grad * loss:
// grad * ((1 + 2 z lse) softmax(l) - smoothing / classes - (1 - smoothing) [j = target]) * dl / d(uncapped logit).
template <bool kCapped, class Logit>
void form_gradient(const SoftmaxCrossEntropy& a, Logit* logits, int64_t target, float maximum, float log_sum,
                   float grad, float* grad_bias) {
  const float probability_factor = grad * (1.0f + 2.0f * a.z_loss * (maximum + log_sum));
  const float uniform = grad * a.label_smoothing / static_cast<float>(a.classes);
  const float inverse_cap = kCapped ? 1.0f / a.softcap : 0.0f;
  const auto slope = [&](auto logit) { return 1.0f - logit * inverse_cap * (logit * inverse_cap); };
  const auto without_target = [&](VecF logit) {
    VecF gradient = exp(logit - maximum - log_sum) * probability_factor - uniform;
    if (kCapped) gradient *= slope(logit);
    return without_subnormals(gradient);
  };
  const float target_logit = load_scalar(logits + target);
  const float target_part = -grad * (1.0f - a.label_smoothing) * (kCapped ? slope(target_logit) : 1.0f);
  for_each_vector(a.classes, [&](int64_t j, auto part) {
    const VecF gradient = without_target(load(logits + j, part));
    store(logits + j, gradient, part);
    if (grad_bias) store(grad_bias + j, load(grad_bias + j, part) + gradient, part);
  });
  store_scalar(logits + target, without_target(broadcast(target_logit))[0] + target_part);
  if (grad_bias) grad_bias[target] += target_part;
}

template <class Logit>
void cross_entropy_row(const SoftmaxCrossEntropy& a, int64_t row, float* grad_bias) {
  Logit* logits = static_cast<Logit*>(a.logits) + row * a.classes;
  const int64_t target = a.targets[row];
  const float maximum = form_logits(a, logits);
  VecF below{};  // sum of logit - maximum: the mean logit, without its rounding where logits are large
  const float sum = sum_over_row(a.classes, [&](int64_t j, auto part) {
    const VecF shifted = load(logits + j, part) - maximum;
    below += pad(shifted, 0.0f, part);
    return pad(exp(shifted), 0.0f, part);
  });
  const float log_sum = __builtin_logf(sum), lse = maximum + log_sum;
  float loss = log_sum - (1.0f - a.label_smoothing) * (load_scalar(logits + target) - maximum) + a.z_loss * lse * lse;
  if (a.label_smoothing > 0.0f) loss -= a.label_smoothing * (reduce_add(below) / static_cast<float>(a.classes));
  a.losses[row] = loss;
  a.lse[row] = lse;
  a.correct[row] = is_first_maximum(logits, target, maximum);
  if (!a.with_gradient) return;
  const float grad = a.row_grads ? a.row_grads[row] : 1.0f;
  const auto form = a.softcap > 0.0f ? form_gradient<true, Logit> : form_gradient<false, Logit>;
  form(a, logits, target, maximum, log_sum, grad, grad_bias);
}

}  // namespace

void softmax_cross_entropy(const SoftmaxCrossEntropy& a, int64_t begin, int64_t end) {
  const auto cross_entropy = a.bfloat16_logits ? cross_entropy_row<BFloat16> : cross_entropy_row<float>;
  for (int64_t block = begin; block < end; ++block) {
    float* grad_bias = a.grad_bias ? a.grad_bias + block * a.classes : nullptr;
    if (grad_bias) std::memset(grad_bias, 0, sizeof(float) * static_cast<uint64_t>(a.classes));
    const int64_t first = block * a.rows_per_block;
    const int64_t last = first + a.rows_per_block < a.rows ? first + a.rows_per_block : a.rows;
    for (int64_t row = first; row < last; ++row) cross_entropy(a, row, grad_bias);
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
