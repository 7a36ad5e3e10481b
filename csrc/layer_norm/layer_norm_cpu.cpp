// Layer norm on the CPU: each row is read once from memory and kept as float32 in a scratch row (L1).
#include "common/philox.h"
#include "common/vec.h"
#include "layer_norm/layer_norm.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

// Writes the random elements of one row, and up to kPhiloxElements - 1 past its end.
void draw_row(const Dropout& dropout, int64_t row, int64_t width, uint16_t* random) {
  for (int64_t j = 0; j < width; j += kPhiloxElements)
    philox_elements(random + j, static_cast<uint32_t>(j / 8), static_cast<uint32_t>(row),
                    static_cast<uint32_t>(row >> 32), 0, dropout.key_0, dropout.key_1);
}

FASTSSL_INLINE VecF drop(VecF x, const Dropout& dropout, const uint16_t* random) {
  VecU16 elements;
  std::memcpy(&elements, random, sizeof elements);
  return __builtin_convertvector(elements, VecU) >= dropout.threshold ? x * dropout.scale : VecF{};
}

FASTSSL_INLINE VecF rounded(VecF x, const float*) {
  return x;
}
template <class Storage16>
FASTSSL_INLINE VecF rounded(VecF x, const Storage16*) {
  return widen(narrow(x, Storage16{}), Storage16{});
}

// sum = residual + dropout(x), rounded as it is stored; a float32 copy goes to `row`. Returns the total.
template <bool kDropout, bool kResidual, class X, class Sum>
float form_sum(const X* x, const Sum* residual, Sum* sum, int64_t width, const Dropout& dropout,
               const uint16_t* random, float* row) {
  VecF total{};
  for_each_vector(width, [&](int64_t j, auto part) {
    VecF value = load(x + j, part);
    if constexpr (kDropout) value = drop(value, dropout, random + j);
    if constexpr (kResidual) value += load(residual + j, part);
    value = rounded(value, sum);
    if (sum) store(sum + j, value, part);
    store(row + j, value);
    total += value;
  });
  return reduce_add(total);
}

template <class X, class Sum>
void forward_row(const LayerNormForward& a, int64_t i, float* row) {
  const int64_t width = a.width, at = i * width;
  const X* x = static_cast<const X*>(a.x) + at;
  const Sum* residual = a.residual ? static_cast<const Sum*>(a.residual) + at : nullptr;
  Sum* sum = a.sum ? static_cast<Sum*>(a.sum) + at : nullptr;
  uint16_t* random = reinterpret_cast<uint16_t*>(row + width + kLanes);
  float total;
  if (a.dropout.threshold) {
    draw_row(a.dropout, i, width, random);
    total = residual ? form_sum<true, true>(x, residual, sum, width, a.dropout, random, row)
                     : form_sum<true, false>(x, residual, sum, width, a.dropout, random, row);
  } else {
    total = residual ? form_sum<false, true>(x, residual, sum, width, a.dropout, random, row)
                     : form_sum<false, false>(x, residual, sum, width, a.dropout, random, row);
  }
  const float mean = total / static_cast<float>(width);
  VecF squares{};
  for_each_vector(width, [&](int64_t j, auto part) {
    const VecF centred = pad(load(row + j) - mean, 0.0f, part);
    squares += centred * centred;
  });
  const float rstd = 1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(width) + a.eps);
  X* y = static_cast<X*>(a.y) + at;
  for_each_vector(width, [&](int64_t j, auto part) {
    VecF value = (load(row + j) - mean) * rstd * load(a.weight + j, part);
    if (a.bias) value += load(a.bias + j, part);
    store(y + j, value, part);
  });
  a.mean[i] = mean;
  a.rstd[i] = rstd;
}

// With n = (sum - mean) * rstd and g = grad_y * weight:
// grad_sum = rstd * (g - mean(g) - n * mean(g * n)), plus what comes in through the returned sum.
template <class X, class Sum>
void backward_row(const LayerNormBackward& a, int64_t i, float* grad_weight, float* grad_bias, float* scratch) {
  const int64_t width = a.width, at = i * width;
  const X* grad_y = static_cast<const X*>(a.grad_y) + at;
  const Sum* sum = static_cast<const Sum*>(a.sum) + at;
  const float mean = a.mean[i], rstd = a.rstd[i];
  VecF total{}, product{};
  for_each_vector(width, [&](int64_t j, auto part) {
    const VecF dy = load(grad_y + j, part), n = (load(sum + j, part) - mean) * rstd;
    const VecF g = dy * load(a.weight + j, part);
    total += g;
    product += g * n;
    store(grad_weight + j, load(grad_weight + j, part) + dy * n, part);
    store(grad_bias + j, load(grad_bias + j, part) + dy, part);
  });
  const float mean_g = reduce_add(total) / static_cast<float>(width);
  const float mean_gn = reduce_add(product) / static_cast<float>(width);

  const Sum* grad_sum = a.grad_sum ? static_cast<const Sum*>(a.grad_sum) + at : nullptr;
  Sum* grad_residual = a.grad_residual ? static_cast<Sum*>(a.grad_residual) + at : nullptr;
  X* grad_x = static_cast<X*>(a.grad_x) + at;
  uint16_t* random = reinterpret_cast<uint16_t*>(scratch);
  const bool dropped = a.dropout.threshold != 0;
  if (dropped) draw_row(a.dropout, i, width, random);
  for_each_vector(width, [&](int64_t j, auto part) {
    const VecF g = load(grad_y + j, part) * load(a.weight + j, part);
    const VecF n = (load(sum + j, part) - mean) * rstd;
    VecF grad = (g - mean_g - n * mean_gn) * rstd;
    if (grad_sum) grad += load(grad_sum + j, part);
    if (grad_residual) store(grad_residual + j, grad, part);
    store(grad_x + j, dropped ? drop(grad, a.dropout, random + j) : grad, part);
  });
}

template <class X, class Sum>
void backward_blocks(const LayerNormBackward& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t block = begin; block < end; ++block) {
    float* grad_weight = a.grad_weight + block * a.width;
    float* grad_bias = a.grad_bias + block * a.width;
    std::memset(grad_weight, 0, sizeof(float) * static_cast<uint64_t>(a.width));
    std::memset(grad_bias, 0, sizeof(float) * static_cast<uint64_t>(a.width));
    const int64_t first = block * a.rows_per_block;
    const int64_t last = first + a.rows_per_block < a.rows ? first + a.rows_per_block : a.rows;
    for (int64_t i = first; i < last; ++i) backward_row<X, Sum>(a, i, grad_weight, grad_bias, scratch);
  }
}

template <class X, class Sum>
void forward_rows(const LayerNormForward& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) forward_row<X, Sum>(a, i, scratch);
}

}  // namespace

void layer_norm_forward(const LayerNormForward& a, int64_t begin, int64_t end, float* scratch) {
  const bool wide_sum = a.sum_type == Element::float32;
  if (a.x_type == Element::float32) return forward_rows<float, float>(a, begin, end, scratch);
  if (a.x_type == Element::bfloat16)
    return wide_sum ? forward_rows<BFloat16, float>(a, begin, end, scratch)
                    : forward_rows<BFloat16, BFloat16>(a, begin, end, scratch);
  return wide_sum ? forward_rows<Half, float>(a, begin, end, scratch)
                  : forward_rows<Half, Half>(a, begin, end, scratch);
}

void layer_norm_backward(const LayerNormBackward& a, int64_t begin, int64_t end, float* scratch) {
  const bool wide_sum = a.sum_type == Element::float32;
  if (a.x_type == Element::float32) return backward_blocks<float, float>(a, begin, end, scratch);
  if (a.x_type == Element::bfloat16)
    return wide_sum ? backward_blocks<BFloat16, float>(a, begin, end, scratch)
                    : backward_blocks<BFloat16, BFloat16>(a, begin, end, scratch);
  return wide_sum ? backward_blocks<Half, float>(a, begin, end, scratch)
                  : backward_blocks<Half, Half>(a, begin, end, scratch);
}

void sum_blocks(const float* partials, int64_t blocks, int64_t width, float* total, int64_t begin, int64_t end) {
  for_each_vector(end - begin, [&](int64_t j, auto part) {
    VecF sum{};
    for (int64_t block = 0; block < blocks; ++block) sum += load(partials + block * width + begin + j, part);
    store(total + begin + j, sum, part);
  });
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
