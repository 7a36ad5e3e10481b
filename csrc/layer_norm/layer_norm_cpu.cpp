// Layer norm on the CPU: each row comes once from memory and stays in L1 between its passes.
#include "common/philox.h"
#include "common/vec.h"
#include "layer_norm/layer_norm.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

// body(i, j, Whole or Part, drop) for vector i of the eight of a draw, which begins at element j of a row; drop(value)
// zeroes what the row's mask drops and scales the rest. The draws stand between loads and stores, whose waits hide
// them.
template <class Body>
FASTSSL_INLINE void for_each_dropped(const Dropout& dropout, int64_t row, int64_t width, Body body) {
  const uint32_t row_low = static_cast<uint32_t>(row), row_high = static_cast<uint32_t>(row >> 32);
  for (int64_t j = 0; j < width; j += kPhiloxElements) {
    const PhiloxElements elements =
        philox_elements(static_cast<uint32_t>(j / 8), row_low, row_high, 0, dropout.key_0, dropout.key_1);
    const auto visit = [&](int i, auto part) {
      const auto drop = [&](VecF x) { return keep(x, elements, i, dropout.threshold) * dropout.scale; };
      body(i, j + i * kLanes, part, drop);
    };
    const int64_t left = width - j;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if ((i + 1) * kLanes <= left)
        visit(i, Whole{});
      else if (i * kLanes < left)
        visit(i, Part{static_cast<int>(left - i * kLanes)});
    }
  }
}

// sum = residual + dropout(x), rounded as it is stored; returns the total of the rounded values.
template <bool kDropout, bool kResidual, class X, class Sum>
float form_sum(const X* x, const Sum* residual, Sum* sum, int64_t row, int64_t width, const Dropout& dropout) {
  VecF total[4] = {};
  const auto add = [&](int64_t j, auto part, auto drop) {
    VecF value = drop(load(x + j, part));
    if constexpr (kResidual) value += load(residual + j, part);
    store(sum + j, value, part);
    return rounded(value, sum);
  };
  if constexpr (!kDropout)
    return sum_over_row(width, [&](int64_t j, auto part) { return add(j, part, [](VecF x) { return x; }); });
  for_each_dropped(dropout, row, width,
                   [&](int i, int64_t j, auto part, auto drop) { total[i % 4] += add(j, part, drop); });
  return reduce_add((total[0] + total[1]) + (total[2] + total[3]));
}

template <class X, class Sum>
float form_sum(const LayerNormForward& a, int64_t row, const X* x, Sum* sum) {
  const Sum* residual = static_cast<const Sum*>(a.residual) + (a.residual ? row * a.width : 0);
  if (!a.dropout.threshold) return form_sum<false, true>(x, residual, sum, row, a.width, a.dropout);
  return a.residual ? form_sum<true, true>(x, residual, sum, row, a.width, a.dropout)
                    : form_sum<true, false>(x, residual, sum, row, a.width, a.dropout);
}

// y and the statistics of one row of sums, whose total is known.
template <class Sum, class Y>
void normalise(const LayerNormForward& a, int64_t row, const Sum* sum, float total, Y* y) {
  const float mean = total / static_cast<float>(a.width);
  const float squares = sum_over_row(a.width, [&](int64_t j, auto part) {
    const VecF centred = pad(load(sum + j, part) - mean, 0.0f, part);
    return centred * centred;
  });
  const float rstd = 1.0f / __builtin_sqrtf(squares / static_cast<float>(a.width) + a.eps);
  const float* bias = a.bias;
  for_each_vector(a.width, [&](int64_t j, auto part) {
    VecF value = (load(sum + j, part) - mean) * rstd * load(a.weight + j, part);
    if (bias) value += load(bias + j, part);
    store(y + j, value, part);
  });
  a.mean[row] = mean;
  a.rstd[row] = rstd;
}

template <class X, class Sum>
void forward_rows(const LayerNormForward& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(a.x) + row * a.width;
    X* y = static_cast<X*>(a.y) + row * a.width;
    if (a.sum) {
      Sum* sum = static_cast<Sum*>(a.sum) + row * a.width;
      const float total = form_sum(a, row, x, sum);
      normalise(a, row, sum, total, y);
    } else {
      normalise(a, row, x, sum_over_row(a.width, [&](int64_t j, auto part) { return load(x + j, part); }), y);
    }
  }
}

// With n = (sum - mean) * rstd and g = grad_y * weight:
// grad_sum = rstd * (g - mean(g) - n * mean(g * n)), plus what comes in through the returned sum.
template <class X, class Sum>
void backward_row(const LayerNormBackward& a, int64_t row, float* grad_weight, float* grad_bias) {
  const int64_t width = a.width, at = row * width;
  const X* grad_y = a.grad_y ? static_cast<const X*>(a.grad_y) + at : nullptr;
  const Sum* sum = static_cast<const Sum*>(a.sum) + at;
  const float mean = a.mean[row], rstd = a.rstd[row];
  VecF product{};
  const float total = !a.grad_y ? 0.0f : sum_over_row(width, [&](int64_t j, auto part) {
    const VecF dy = load(grad_y + j, part), n = (load(sum + j, part) - mean) * rstd;
    const VecF g = dy * load(a.weight + j, part);
    product += g * n;
    store(grad_weight + j, load(grad_weight + j, part) + dy * n, part);
    store(grad_bias + j, load(grad_bias + j, part) + dy, part);
    return g;
  });
  const float mean_g = total / static_cast<float>(width);
  const float mean_gn = reduce_add(product) / static_cast<float>(width);

  const Sum* grad_sum = a.grad_sum ? static_cast<const Sum*>(a.grad_sum) + at : nullptr;
  Sum* grad_residual = a.grad_residual ? static_cast<Sum*>(a.grad_residual) + at : nullptr;
  X* grad_x = static_cast<X*>(a.grad_x) + at;
  const auto finish = [&](int /*i*/, int64_t j, auto part, auto drop) {
    VecF grad{};
    if (grad_y) {
      const VecF g = load(grad_y + j, part) * load(a.weight + j, part);
      const VecF n = (load(sum + j, part) - mean) * rstd;
      grad = (g - mean_g - n * mean_gn) * rstd;
    }
    if (grad_sum) grad += load(grad_sum + j, part);
    if (grad_residual) store(grad_residual + j, grad, part);
    store(grad_x + j, drop(grad), part);
  };
  if (a.dropout.threshold)
    for_each_dropped(a.dropout, row, width, finish);
  else
    for_each_vector(width, [&](int64_t j, auto part) { finish(0, j, part, [](VecF x) { return x; }); });
}

template <class X, class Sum>
void backward_blocks(const LayerNormBackward& a, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* grad_weight = a.grad_weight + block * a.width;
    float* grad_bias = a.grad_bias + block * a.width;
    std::memset(grad_weight, 0, sizeof(float) * static_cast<uint64_t>(a.width));
    std::memset(grad_bias, 0, sizeof(float) * static_cast<uint64_t>(a.width));
    const int64_t first = block * a.rows_per_block;
    const int64_t last = first + a.rows_per_block < a.rows ? first + a.rows_per_block : a.rows;
    for (int64_t row = first; row < last; ++row) backward_row<X, Sum>(a, row, grad_weight, grad_bias);
  }
}

}  // namespace

void layer_norm_forward(const LayerNormForward& a, int64_t begin, int64_t end) {
  const bool wide_sum = a.sum_type == Element::float32;
  if (a.x_type == Element::float32) return forward_rows<float, float>(a, begin, end);
  if (a.x_type == Element::bfloat16)
    return wide_sum ? forward_rows<BFloat16, float>(a, begin, end) : forward_rows<BFloat16, BFloat16>(a, begin, end);
  return wide_sum ? forward_rows<Half, float>(a, begin, end) : forward_rows<Half, Half>(a, begin, end);
}

void layer_norm_backward(const LayerNormBackward& a, int64_t begin, int64_t end) {
  const bool wide_sum = a.sum_type == Element::float32;
  if (a.x_type == Element::float32) return backward_blocks<float, float>(a, begin, end);
  if (a.x_type == Element::bfloat16)
    return wide_sum ? backward_blocks<BFloat16, float>(a, begin, end)
                    : backward_blocks<BFloat16, BFloat16>(a, begin, end);
  return wide_sum ? backward_blocks<Half, float>(a, begin, end) : backward_blocks<Half, Half>(a, begin, end);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
