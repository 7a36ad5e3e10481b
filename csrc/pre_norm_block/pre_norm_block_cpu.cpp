// A pre-norm transformer block on the CPU: a worker takes its sequences through all of it, so that nothing but the
// weights' gradients is ever waited for or shared.
#include "common/gelu.h"
#include "common/product.h"
#include "common/vec.h"
#include "layer_norm/layer_norm.h"
#include "pre_norm_block/packed_products.h"
#include "pre_norm_block/pre_norm_block.h"

namespace fastssl::FASTSSL_ISA {

using attention::Item;
using attention::Rows;
using pre_norm::Backward;
using pre_norm::Block;
using pre_norm::Forward;
using pre_norm::kGap;
using pre_norm::kRowsTogether;
using pre_norm::Map;
using pre_norm::Parameters;
using pre_norm::Share;
using pre_norm::Sizes;

namespace {

Matrix rows_from(const float* data, int64_t row, int64_t width) {
  return {const_cast<float*>(data) + row * width, width};  // read only, where the tensor is
}

// body(first row, rows) for a group's rows, kRowsTogether at a time or somewhat fewer.
template <class Body>
void for_parts(int64_t begin, int64_t end, Body body) {
  const int64_t parts = (end - begin + kRowsTogether - 1) / kRowsTogether;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = begin + (end - begin) * i / parts, last = begin + (end - begin) * (i + 1) / parts;
    body(first, last - first);
  }
}

// ---- the parts of the block ----

LayerNormForward attention_norm(const Block& b, int64_t row, float* y) {
  const int64_t at = row * b.sizes.width;
  return {.x = b.addend + at,
          .residual = b.residual ? b.residual + at : nullptr,
          .weight = b.parameters.attention_norm.weight,
          .bias = b.parameters.attention_norm.bias,
          .y = y,
          .sum = b.stream ? b.stream + at : nullptr,
          .mean = b.mean + row,
          .rstd = b.rstd + row,
          .width = b.sizes.width,
          .eps = b.attention_eps,
          .x_type = Element::float32,
          .sum_type = Element::float32,
          .dropout = b.addend_dropout,
          .first_row = row};
}

LayerNormForward mlp_norm(const Block& b, int64_t row, const float* attended, float* y) {
  const int64_t at = row * b.sizes.width;
  return {.x = attended,
          .residual = (b.stream ? b.stream : b.addend) + at,
          .weight = b.parameters.mlp_norm.weight,
          .bias = b.parameters.mlp_norm.bias,
          .y = y,
          .sum = b.inner_stream + at,
          .mean = b.mean + b.rows + row,
          .rstd = b.rstd + b.rows + row,
          .width = b.sizes.width,
          .eps = b.mlp_eps,
          .x_type = Element::float32,
          .sum_type = Element::float32,
          .dropout = b.output_dropout,
          .first_row = row};
}

// y = (sum - mean) rstd weight + bias, as the forward computed it.
void normalise_again(const Matrix& y, const float* sum, const float* mean, const float* rstd,
                     const Map<const float>& norm, int64_t rows, int64_t width) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const VecF weight = load(norm.weight + j), bias = norm.bias ? load(norm.bias + j) : VecF{};
    for (int64_t i = 0; i < rows; ++i)
      store(y.data + i * y.ld + j, (load(sum + i * width + j) - mean[i]) * rstd[i] * weight + bias);
  }
}

// Turns the heads of queries and keys, rows from row `row` on: pair (j, j + D / 2) of a head by the row's angle j, or,
// for a gradient, by minus that.
template <bool kBack>
void turn(const Matrix& heads, const Block& b, int64_t row, int64_t rows) {
  if (!b.cos) return;
  const int64_t half = b.sizes.head_width / 2, count = b.sizes.heads + b.sizes.key_heads;
  for (int64_t i = 0; i < rows; ++i) {
    const float* const cos = b.cos + (row + i) * half;
    const float* const sin = b.sin + (row + i) * half;
    for (int64_t head = 0; head < count; ++head) {
      float* const x = heads.data + i * heads.ld + head * b.sizes.head_width;
      for_each_vector(half, [&](int64_t j, auto part) {
        const VecF first = load(x + j, part), second = load(x + half + j, part);
        const VecF c = load(cos + j, part), s = kBack ? -load(sin + j, part) : load(sin + j, part);
        store(x + j, first * c - second * s, part);
        store(x + half + j, second * c + first * s, part);
      });
    }
  }
}

// Attention's tensors, counted from row `row`.
attention::Arguments attention_from(const Block& b, int64_t row) {
  const Sizes& s = b.sizes;
  const int64_t width = s.head_width, qkv_row = s.qkv();
  float* const qkv = b.qkv + row * qkv_row;
  attention::Arguments args = b.attention;
  args.q = {qkv, 0, qkv_row, width};
  args.k = {qkv + s.heads * width, 0, qkv_row, width};
  args.v = {qkv + (s.heads + s.key_heads) * width, 0, qkv_row, width};
  args.out = {b.attended + row * s.attended(), 0, s.attended(), width};
  args.lse = {b.lse + row, 0, 1, b.rows};
  return args;
}

// kernel(args, item, next, scratch) for every head of every sequence of a group.
template <class Kernel>
void attend(const attention::Arguments& args, const Share& share, int64_t first, int64_t last, int64_t heads,
            float* scratch, Kernel kernel) {
  const int64_t origin = share.begin_of_sequence[first];
  for (int64_t b = first; b < last; ++b) {
    const int64_t row = share.begin_of_sequence[b] - origin;
    const int64_t length = share.begin_of_sequence[b + 1] - share.begin_of_sequence[b];
    for (int64_t head = 0; head < heads; ++head)
      kernel(args, Item{b, head, row, length, row, length, 0, length}, nullptr, scratch);
  }
}

template <class Gelu>
void activate(const Matrix& h, const float* up, const float* bias, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; j += kLanes)
      store(h.data + i * h.ld + j, Gelu::value(load(up + i * width + j) + (bias ? load(bias + j) : VecF{})));
}

// h = gelu(up + bias), and grad, that of h, becomes that of up + bias.
template <class Gelu>
void activate_again(const Matrix& h, const Matrix& grad, const float* up, const float* bias, int64_t rows,
                    int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const VecF x = load(up + i * width + j) + (bias ? load(bias + j) : VecF{});
      float* const g = grad.data + i * grad.ld + j;
      store(h.data + i * h.ld + j, Gelu::value(x));
      store(g, load(g) * Gelu::slope(x));
    }
  }
}

// The weights of the four maps, packed for one direction.
struct Weights {
  Packed qkv, output, up, down;
};

void forward_group(const Forward& f, const Share& share, int64_t first, int64_t last, const Weights& w, float* memory) {
  const Sizes& s = f.sizes;
  const Parameters<const float>& p = f.parameters;
  const int64_t begin = share.begin_of_sequence[first], end = share.begin_of_sequence[last];
  float* const normed = memory;
  float* const attended = normed + kRowsTogether * s.width;
  const Matrix h{attended + kRowsTogether * s.width, s.mlp_width + kGap};
  float* const scratch = h.data + kRowsTogether * h.ld;
  for_parts(begin, end, [&](int64_t row, int64_t rows) {
    layer_norm_forward(attention_norm(f, row, normed), 0, rows);
    const Matrix heads = rows_from(f.qkv, row, s.qkv());
    multiply(heads, {normed, s.width}, rows, w.qkv, p.qkv.bias);
    turn<false>(heads, f, row, rows);
  });
  attend(attention_from(f, begin), share, first, last, s.heads, scratch, attention_forward);
  for_parts(begin, end, [&](int64_t row, int64_t rows) {
    multiply({attended, s.width}, rows_from(f.attended, row, s.attended()), rows, w.output, p.output.bias);
    layer_norm_forward(mlp_norm(f, row, attended, normed), 0, rows);
    const Matrix up = rows_from(f.up, row, s.mlp_width);
    multiply(up, {normed, s.width}, rows, w.up, nullptr);
    if (f.tanh)
      activate<TanhGelu>(h, up.data, p.up.bias, rows, s.mlp_width);
    else
      activate<ExactGelu>(h, up.data, p.up.bias, rows, s.mlp_width);
    multiply(rows_from(f.out, row, s.width), h, rows, w.down, p.down.bias);
  });
}

void norm_backward(const LayerNormForward& norm, const float* sum, const float* grad_y, const float* grad_sum,
                   float* grad_x, float* grad_residual, int64_t rows, const Map<float>& grad, float* sums) {
  const LayerNormBackward args{.grad_y = grad_y,
                               .grad_sum = grad_sum,
                               .sum = sum,
                               .weight = norm.weight,
                               .mean = norm.mean,
                               .rstd = norm.rstd,
                               .grad_x = grad_x,
                               .grad_residual = grad_residual,
                               .grad_weight = sums,
                               .grad_bias = sums + norm.width,
                               .rows = rows,
                               .rows_per_block = rows,
                               .width = norm.width,
                               .x_type = Element::float32,
                               .sum_type = Element::float32,
                               .dropout = norm.dropout,
                               .first_row = norm.first_row};
  layer_norm_backward(args, 0, 1);
  add(grad.weight, sums, norm.width);
  add(grad.bias, sums + norm.width, norm.width);
}

// A worker's memory in the backward.
struct BackwardMemory {
  // Of kRowsTogether rows.
  Matrix normed;                     // E
  float *grad_normed, *grad_output;  // E
  Matrix h, grad_up;                 // F
  float* sums;                       // 2 E
  // Of all rows of a group, for its attention.
  Matrix grad_attended, grad_qkv;
  float* attention;

  BackwardMemory(float* memory, const Sizes& s, int64_t rows) {
    const auto take = [&](int64_t count) {
      memory += count;
      return memory - count;
    };
    const auto take_rows = [&](int64_t count, int64_t width) {
      return Matrix{take(count * (width + kGap)), width + kGap};
    };
    normed = take_rows(kRowsTogether, s.width);
    grad_normed = take(kRowsTogether * s.width);
    grad_output = take(kRowsTogether * s.width);
    h = take_rows(kRowsTogether, s.mlp_width);
    grad_up = take_rows(kRowsTogether, s.mlp_width);
    sums = take(2 * s.width);
    grad_attended = take_rows(rows, s.attended());
    grad_qkv = take_rows(rows, s.qkv());
    attention = memory;
  }
};

// From the output back to what attention gives, for rows from row `row` on; `at` counts it in the group. The first rows
// of all write the gradients of matrices.
void network_backward(const Backward& b, const Weights& w, const Parameters<float>& grad, const BackwardMemory& m,
                      int64_t row, int64_t at, int64_t rows, bool first) {
  const Sizes& s = b.sizes;
  const Parameters<const float>& p = b.parameters;
  const Matrix grad_out = rows_from(b.grad_out, row, s.width), up = rows_from(b.up, row, s.mlp_width);
  multiply(m.grad_up, grad_out, rows, w.down, nullptr);
  if (b.tanh)
    activate_again<TanhGelu>(m.h, m.grad_up, up.data, p.up.bias, rows, s.mlp_width);
  else
    activate_again<ExactGelu>(m.h, m.grad_up, up.data, p.up.bias, rows, s.mlp_width);
  add_outer(grad.down.weight, grad_out, s.width, m.h, s.mlp_width, rows, first);
  add_columns(grad.down.bias, grad_out, rows, s.width);

  const LayerNormForward norm = mlp_norm(b, row, nullptr, nullptr);
  const float* const sum = b.inner_stream + row * s.width;
  normalise_again(m.normed, sum, norm.mean, norm.rstd, p.mlp_norm, rows, s.width);
  add_outer(grad.up.weight, m.grad_up, s.mlp_width, m.normed, s.width, rows, first);
  if (p.up.bias) add_columns(grad.up.bias, m.grad_up, rows, s.mlp_width);
  multiply({m.grad_normed, s.width}, m.grad_up, rows, w.up, nullptr);
  norm_backward(norm, sum, m.grad_normed, b.grad_inner_stream ? b.grad_inner_stream + row * s.width : nullptr,
                m.grad_output, b.grad_residual + row * s.width, rows, grad.mlp_norm, m.sums);

  const Matrix grad_output{m.grad_output, s.width}, attended = rows_from(b.attended, row, s.attended());
  add_outer(grad.output.weight, grad_output, s.width, attended, s.attended(), rows, first);
  add_columns(grad.output.bias, grad_output, rows, s.width);
  multiply({m.grad_attended.data + at * m.grad_attended.ld, m.grad_attended.ld}, grad_output, rows, w.output, nullptr);
}

// From the projections back to what enters the block.
void projection_backward(const Backward& b, const Weights& w, const Parameters<float>& grad, const BackwardMemory& m,
                         int64_t row, int64_t at, int64_t rows, bool first) {
  const Sizes& s = b.sizes;
  const Matrix grad_qkv{m.grad_qkv.data + at * m.grad_qkv.ld, m.grad_qkv.ld};
  turn<true>(grad_qkv, b, row, rows);
  const LayerNormForward norm = attention_norm(b, row, nullptr);
  const float* const sum = (b.stream ? b.stream : b.addend) + row * s.width;
  normalise_again(m.normed, sum, norm.mean, norm.rstd, b.parameters.attention_norm, rows, s.width);
  add_outer(grad.qkv.weight, grad_qkv, s.qkv(), m.normed, s.width, rows, first);
  if (b.parameters.qkv.bias) add_columns(grad.qkv.bias, grad_qkv, rows, s.qkv());
  multiply({m.grad_normed, s.width}, grad_qkv, rows, w.qkv, nullptr);
  float* const grad_stream = b.grad_residual + row * s.width;
  norm_backward(norm, sum, m.grad_normed, grad_stream, b.grad_addend + row * s.width, grad_stream, rows,
                grad.attention_norm, m.sums);
}

void backward_group(const Backward& b, const Share& share, int64_t first, int64_t last, const Weights& w,
                    const Parameters<float>& grad, float* memory) {
  const Sizes& s = b.sizes;
  const int64_t begin = share.begin_of_sequence[first], end = share.begin_of_sequence[last], width = s.head_width;
  const int64_t first_row = share.begin_of_sequence[share.first];
  const BackwardMemory m(memory, s, end - begin);
  for_parts(begin, end, [&](int64_t row, int64_t rows) {
    network_backward(b, w, grad, m, row, row - begin, rows, row == first_row);
  });
  attention::Arguments args = attention_from(b, begin);
  args.grad_out = {m.grad_attended.data, 0, m.grad_attended.ld, width};
  args.grad_q = {m.grad_qkv.data, 0, m.grad_qkv.ld, width};
  args.grad_k = {m.grad_qkv.data + s.heads * width, 0, m.grad_qkv.ld, width};
  args.grad_v = {m.grad_qkv.data + (s.heads + s.key_heads) * width, 0, m.grad_qkv.ld, width};
  attend(args, share, first, last, s.key_heads, m.attention, attention_backward);
  for_parts(begin, end, [&](int64_t row, int64_t rows) {
    projection_backward(b, w, grad, m, row, row - begin, rows, row == first_row);
  });
}

struct Extent {
  Map<float> map;
  int64_t outputs, inputs;  // no inputs: a norm
};

}  // namespace

void pre_norm_block_forward(const Forward& f, const Share& share, float* memory) {
  const Sizes& s = f.sizes;
  const Parameters<const float>& p = f.parameters;
  const Weights w{pack_transposed(memory, p.qkv.weight, s.qkv(), s.width),
                  pack_transposed(memory, p.output.weight, s.width, s.attended()),
                  pack_transposed(memory, p.up.weight, s.mlp_width, s.width),
                  pack_transposed(memory, p.down.weight, s.width, s.mlp_width)};
  for (int64_t first = share.first, end; first < share.last; first = end) {
    end = pre_norm::end_of_group(share, first);
    forward_group(f, share, first, end, w, memory);
  }
}

void pre_norm_block_backward(const Backward& b, const Share& share, const Parameters<float>& grad, float* memory) {
  const Sizes& s = b.sizes;
  const Parameters<const float>& p = b.parameters;
  const Weights w{pack(memory, p.qkv.weight, s.qkv(), s.width), pack(memory, p.output.weight, s.width, s.attended()),
                  pack(memory, p.up.weight, s.mlp_width, s.width), pack(memory, p.down.weight, s.width, s.mlp_width)};
  const bool nothing = share.begin_of_sequence[share.first] == share.begin_of_sequence[share.last];
  const auto clear = [](float* x, int64_t count) { std::memset(x, 0, sizeof(float) * static_cast<size_t>(count)); };
  const Extent extents[] = {{grad.attention_norm, s.width, 0},    {grad.qkv, s.qkv(), s.width},
                            {grad.output, s.width, s.attended()}, {grad.mlp_norm, s.width, 0},
                            {grad.up, s.mlp_width, s.width},      {grad.down, s.width, s.mlp_width}};
  for (const auto& [map, outputs, inputs] : extents) {
    clear(map.bias, outputs);
    // The first rows write the gradients of matrices.
    if (inputs == 0 || nothing) clear(map.weight, inputs == 0 ? outputs : outputs * inputs);
  }
  for (int64_t first = share.first, end; first < share.last; first = end) {
    end = pre_norm::end_of_group(share, first);
    backward_group(b, share, first, end, w, grad, memory);
  }
}

}  // namespace fastssl::FASTSSL_ISA
