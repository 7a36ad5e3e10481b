// Which layer norm kernel runs, and over what grid: a matter of width, alignment, dtypes and device alone.
#pragma once

#include <algorithm>

#include "common/element.h"
#include "cuda/column_sums.cuh"
#include "layer_norm/layer_norm_kernels.cuh"

namespace fastssl::cuda {

// Threads a row, rows a block, vectors a thread.
template <int kThreads_, int kRows_, int kVectors_>
struct RowShape {
  static constexpr int kThreads = kThreads_, kRows = kRows_, kVectors = kVectors_;
  static constexpr int kWidth = kThreads * kVectors * kVector;
  static constexpr bool kAny = false;
};
// A row of any width in memory, a block a row.
template <int kThreads_>
struct AnyShape {
  static constexpr int kThreads = kThreads_, kRows = 1;
  static constexpr bool kAny = true;
};

// Calls body with the first of the shapes that holds a row; returns whether one does.
template <class Body, class... Shapes>
bool with_first_shape(int width, Body body, Shapes... shapes) {
  return (... || (width <= Shapes::kWidth ? (body(shapes), true) : false));
}

template <class Body>
void with_any_shape(int width, Body body) {
  if (width <= 1024)
    body(AnyShape<64>{});
  else
    body(AnyShape<512>{});
}

template <class Body>
void with_forward_shape(int width, bool aligned, Body body) {
  const auto found =
      aligned && with_first_shape(width, body, RowShape<32, 8, 1>{}, RowShape<32, 8, 2>{}, RowShape<32, 8, 3>{},
                                  RowShape<32, 8, 4>{}, RowShape<128, 1, 2>{}, RowShape<128, 1, 3>{},
                                  RowShape<128, 1, 4>{}, RowShape<512, 1, 2>{}, RowShape<512, 1, 4>{});
  if (!found) with_any_shape(width, body);
}

template <class Body>
void with_backward_shape(int width, bool aligned, Body body) {
  const auto found =
      aligned && with_first_shape(width, body, RowShape<32, 16, 1>{}, RowShape<64, 8, 1>{}, RowShape<96, 5, 1>{},
                                  RowShape<128, 4, 1>{}, RowShape<256, 2, 1>{}, RowShape<384, 1, 1>{},
                                  RowShape<512, 1, 1>{}, RowShape<384, 1, 2>{}, RowShape<512, 1, 2>{});
  if (!found) with_any_shape(width, body);
}

// Calls body with a value of the type of x, and one of the type of the sum, which is that of x or float32.
template <class Body>
void with_types(Element x, Element sum, Body body) {
  const auto with_sum = [&](auto x_value) {
    if (sum == Element::float32)
      body(x_value, float{});
    else
      body(x_value, x_value);
  };
  if (x == Element::float32)
    body(float{}, float{});
  else if (x == Element::bfloat16)
    with_sum(BFloat16{});
  else
    with_sum(Half{});
}

inline int64_t blocks_of(int64_t rows, int rows_per_block) {
  return (rows + rows_per_block - 1) / rows_per_block;
}

inline bool is_aligned(const LayerNormForward& a) {
  return a.width % kVector == 0 && all_aligned(a.x, a.residual, a.weight, a.bias, a.y, a.sum);
}

// Whether rows stay in registers, so that the sum need not be stored where nobody else asks for it.
inline bool layer_norm_forward_keeps_rows(const LayerNormForward& a) {
  bool keeps = false;
  with_forward_shape(a.width, is_aligned(a), [&](auto shape) { keeps = !decltype(shape)::kAny; });
  return keeps;
}

inline void launch_layer_norm_forward(const LayerNormForward& a, Element x, Element sum, cudaStream_t stream) {
  const bool aligned = is_aligned(a);
  with_types(x, sum, [&](auto x_value, auto sum_value) {
    using X = decltype(x_value);
    using Sum = decltype(sum_value);
    with_forward_shape(a.width, aligned, [&](auto shape) {
      using Shape = decltype(shape);
      const dim3 blocks(static_cast<unsigned>(blocks_of(a.rows, Shape::kRows)));
      const dim3 threads(Shape::kThreads * Shape::kRows);
      if constexpr (Shape::kAny) {
        launch(layer_norm_forward_any<X, Sum, Shape::kThreads>, blocks, threads, 0, stream, a);
      } else {
        auto* kernel = layer_norm_forward_rows<X, Sum, Shape::kThreads, Shape::kVectors, true>;
        if constexpr (std::is_same_v<X, Sum>)
          if (!a.changed()) kernel = layer_norm_forward_rows<X, Sum, Shape::kThreads, Shape::kVectors, false>;
        launch(kernel, blocks, threads, 0, stream, a);
      }
    });
  });
}

// How the rows of a backward fall into blocks, each of which leaves partial sums: one block a multiprocessor holds as
// many rows as its registers can, and partial sums cost memory traffic. The caller allocates them.
struct BackwardPlan {
  bool aligned;
  int stages;
  int64_t blocks;
};

inline BackwardPlan plan_layer_norm_backward(const LayerNormBackward& a, Element x, Element sum,
                                             const DeviceLimits& limits) {
  constexpr int kAnyBlocksPerMultiprocessor = 4;
  constexpr int kReservedBytes = 1024;  // for the sums over a row
  BackwardPlan plan{};
  plan.aligned =
      a.width % kVector == 0 && all_aligned(a.grad_y, a.grad_sum, a.sum, a.weight, a.grad_x, a.grad_residual);
  with_types(x, sum, [&](auto x_value, auto sum_value) {
    const auto plan_for = [&](auto shape) {
      using Shape = decltype(shape);
      int per_multiprocessor = kAnyBlocksPerMultiprocessor;
      if constexpr (!Shape::kAny) {
        constexpr int kStageBytes = Shape::kRows * Shape::kWidth * static_cast<int>(sizeof x_value + sizeof sum_value);
        plan.stages = std::min((limits.shared_bytes_per_block - kReservedBytes) / kStageBytes, kMaxStages);
        per_multiprocessor = 1;
      }
      plan.blocks = std::min<int64_t>(blocks_of(a.rows, Shape::kRows), limits.multiprocessors * per_multiprocessor);
    };
    with_backward_shape(a.width, plan.aligned, plan_for);
    if (plan.aligned && plan.stages < 2) {
      plan.aligned = false;
      with_backward_shape(a.width, false, plan_for);
    }
  });
  return plan;
}

inline void launch_layer_norm_backward(LayerNormBackward a, const BackwardPlan& plan, Element x, Element sum,
                                       float* grad_weight, float* grad_bias, cudaStream_t stream) {
  a.stages = plan.stages;
  with_types(x, sum, [&](auto x_value, auto sum_value) {
    using X = decltype(x_value);
    using Sum = decltype(sum_value);
    with_backward_shape(a.width, plan.aligned, [&](auto shape) {
      using Shape = decltype(shape);
      const dim3 blocks(static_cast<unsigned>(plan.blocks)), threads(Shape::kThreads * Shape::kRows);
      if constexpr (Shape::kAny) {
        launch(layer_norm_backward_any<X, Sum, Shape::kThreads>, blocks, threads, 0, stream, a);
      } else {
        const size_t shared_bytes = plan.stages * Shape::kRows * Shape::kWidth * (sizeof(X) + sizeof(Sum));
        launch(layer_norm_backward_rows<X, Sum, Shape::kThreads, Shape::kRows, Shape::kVectors>, blocks, threads,
               shared_bytes, stream, a);
      }
    });
  });
  launch_sum_blocks({a.partials, grad_weight, grad_bias, plan.blocks, a.width, false}, 2, stream);
}

}  // namespace fastssl::cuda
