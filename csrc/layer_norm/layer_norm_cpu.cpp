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
  const int64_t mask_row = a.first_row + row;
  return a.residual ? form_sum<true, true>(x, residual, sum, mask_row, a.width, a.dropout)
                    : form_sum<true, false>(x, residual, sum, mask_row, a.width, a.dropout);
}

// Rows that are computed together: their loads overlap, and parameters and their gradients are read once for all.
constexpr int kRowsTogether = kLanes == 16 ? 4 : 2;

// rows(i, n) for every n rows from row i on, as many together as there are.
template <class Body>
FASTSSL_INLINE void for_rows(int64_t begin, int64_t end, Body rows) {
  for (; begin + kRowsTogether <= end; begin += kRowsTogether) rows(begin, Count<kRowsTogether>{});
  for (; begin < end; ++begin) rows(begin, Count<1>{});
}

// y and the statistics of rows of sums, whose totals are known. The memory is asked for the next rows meanwhile.
template <class Sum, class Y, int kRows>
void normalise(const LayerNormForward& a, int64_t row, const Sum* sums, const float* totals, Y* y, Count<kRows> rows) {
  const int64_t width = a.width;
  float mean[kRows], squares[kRows], rstd[kRows];
  for (int r = 0; r < kRows; ++r) mean[r] = totals[r] / static_cast<float>(width);
  sums_over_rows(rows, width, squares, [&](int r, int64_t j, auto part) {
    const VecF centred = pad(load(sums + r * width + j, part) - mean[r], 0.0f, part);
    return centred * centred;
  });
  for (int r = 0; r < kRows; ++r) {
    // In double: an error of rstd is one of the whole row.
    const double variance = static_cast<double>(squares[r]) / static_cast<double>(width);
    rstd[r] = static_cast<float>(1.0 / __builtin_sqrt(variance + static_cast<double>(a.eps)));
    a.mean[row + r] = mean[r];
    a.rstd[row + r] = rstd[r];
  }
  for_each_vector(width, [&](int64_t j, auto part) {
    const VecF weight = load(a.weight + j, part), bias = a.bias ? load(a.bias + j, part) : VecF{};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      // One expression, so that the last product and the bias are rounded once.
      store(y + r * width + j, (load(sums + r * width + j, part) - mean[r]) * rstd[r] * weight + bias, part);
      if (a.sum) continue;  // the dropout's draws give the memory time enough
      __builtin_prefetch(sums + (kRows + r) * width + j, 0);
      __builtin_prefetch(y + (kRows + r) * width + j, 1);
    }
  });
}

template <class X, class Sum>
void forward_rows(const LayerNormForward& a, int64_t begin, int64_t end) {
  const int64_t width = a.width;
  for_rows(begin, end, [&](int64_t row, auto rows) {
    const X* x = static_cast<const X*>(a.x) + row * width;
    X* y = static_cast<X*>(a.y) + row * width;
    float totals[rows.value];
    if (a.sum) {
      Sum* sum = static_cast<Sum*>(a.sum) + row * width;
      for (int r = 0; r < rows.value; ++r) totals[r] = form_sum(a, row + r, x + r * width, sum + r * width);
      normalise(a, row, sum, totals, y, rows);
    } else {
      sums_over_rows(rows, width, totals, [&](int r, int64_t j, auto part) { return load(x + r * width + j, part); });
      normalise(a, row, x, totals, y, rows);
    }
  });
}

// With n = (sum - mean) * rstd and g = grad_y * weight:
// grad_sum = rstd * (g - mean(g) - n * mean(g * n)), plus what comes in through the returned sum.
struct RowMeans {
  float of_g = 0.0f, of_gn = 0.0f;
};

// The means of rows, whose part of the parameters' gradients is added to these.
template <class X, class Sum, int kRows>
void form_means(const LayerNormBackward& a, int64_t row, RowMeans* means, float* grad_weight, float* grad_bias,
                Count<kRows>) {
  const int64_t width = a.width;
  const X* grad_y = static_cast<const X*>(a.grad_y) + row * width;
  const Sum* sum = static_cast<const Sum*>(a.sum) + row * width;
  VecF total[kRows][2] = {}, product[kRows][2] = {};
  const auto add = [&](int i, int64_t j, auto part) {
    const VecF weight = load(a.weight + j, part);
    VecF dw = load(grad_weight + j, part), db = load(grad_bias + j, part);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const VecF dy = load(grad_y + r * width + j, part);
      const VecF n = (load(sum + r * width + j, part) - a.mean[row + r]) * a.rstd[row + r], g = dy * weight;
      total[r][i] += g;
      product[r][i] += g * n;
      dw += dy * n;
      db += dy;
    }
    store(grad_weight + j, dw, part);
    store(grad_bias + j, db, part);
  };
  int64_t j = 0;
  for (; j + 2 * kLanes <= width; j += 2 * kLanes) {
    add(0, j, Whole{});
    add(1, j + kLanes, Whole{});
  }
  for_each_vector(width - j, [&](int64_t k, auto part) { add(0, j + k, part); });
  for (int r = 0; r < kRows; ++r) {
    means[r].of_g = reduce_add(total[r][0] + total[r][1]) / static_cast<float>(width);
    means[r].of_gn = reduce_add(product[r][0] + product[r][1]) / static_cast<float>(width);
  }
}

template <class X, class Sum>
void finish_row(const LayerNormBackward& a, int64_t row, RowMeans means) {
  const int64_t width = a.width, at = row * width;
  const X* grad_y = a.grad_y ? static_cast<const X*>(a.grad_y) + at : nullptr;
  const Sum* sum = static_cast<const Sum*>(a.sum) + at;
  const float mean = a.mean[row], rstd = a.rstd[row];
  const Sum* grad_sum = a.grad_sum ? static_cast<const Sum*>(a.grad_sum) + at : nullptr;
  Sum* grad_residual = a.grad_residual ? static_cast<Sum*>(a.grad_residual) + at : nullptr;
  X* grad_x = static_cast<X*>(a.grad_x) + at;
  const auto finish = [&](int /*i*/, int64_t j, auto part, auto drop) {
    VecF grad{};
    if (grad_y) {
      const VecF g = load(grad_y + j, part) * load(a.weight + j, part);
      const VecF n = (load(sum + j, part) - mean) * rstd;
      grad = (g - means.of_g - n * means.of_gn) * rstd;
    }
    if (grad_sum) grad += load(grad_sum + j, part);
    if (grad_residual) store(grad_residual + j, grad, part);
    store(grad_x + j, drop(grad), part);
  };
  if (a.dropout.threshold)
    for_each_dropped(a.dropout, a.first_row + row, width, finish);
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
    for_rows(first, last, [&](int64_t row, auto rows) {
      RowMeans means[rows.value];
      if (a.grad_y) form_means<X, Sum>(a, row, means, grad_weight, grad_bias, rows);
      for (int r = 0; r < rows.value; ++r) finish_row<X, Sum>(a, row + r, means[r]);
    });
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
