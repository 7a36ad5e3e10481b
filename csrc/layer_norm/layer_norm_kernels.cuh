// Layer norm on the GPU: a row comes once from memory and stays in registers (fastssl/ops/layer_norm/README.md).
#pragma once

#include "cuda/dropout.cuh"
#include "cuda/rows.cuh"

namespace fastssl::cuda {

// y = (sum - mean) * rstd * weight + bias with sum = residual + dropout(x), rounded to its dtype.
struct LayerNormForward {
  const void* x;         // (rows, width)
  const void* residual;  // (rows, width) of the dtype of `sum`, or null
  const void* weight;    // (width), float32 or the dtype of x
  const void* bias;      // (width) of the dtype of `weight`, or null
  void* y;               // (rows, width) of the dtype of x
  void* sum;             // (rows, width), or null where it is x, or stays in registers and is not asked for
  float* mean;           // (rows)
  float* rstd;           // (rows)
  int64_t rows;
  int width;
  float eps;
  bool float_parameters;
  Dropout dropout;

  // Whether something is added to x or dropped from it.
  bool changed() const {
    return residual || dropout.threshold;
  }
};

struct LayerNormBackward {
  const void* grad_y;    // (rows, width) of the dtype of grad_x, or null for zeros
  const void* grad_sum;  // (rows, width) of the dtype of `sum`, or null
  const void* sum;       // (rows, width)
  const void* weight;    // (width), float32 or the dtype of grad_x
  const float* mean;     // (rows)
  const float* rstd;     // (rows)
  void* grad_x;          // (rows, width)
  void* grad_residual;   // (rows, width) of the dtype of `sum`, or null
  float* partials;       // (2, blocks, width): the sums of grad_weight and of grad_bias over the rows of a block
  int64_t rows;
  int width;
  bool float_parameters;
  int stages;  // rows of shared memory, 2 .. kMaxStages
  Dropout dropout;
};

template <class T>
__device__ __forceinline__ const T* row_of(const void* matrix, int64_t row, int width) {
  return static_cast<const T*>(matrix) + row * width;
}
template <class T>
__device__ __forceinline__ T* row_of(void* matrix, int64_t row, int width) {
  return static_cast<T*>(matrix) + row * width;
}

// The mask of vector v of a row, applied.
__device__ __forceinline__ void drop_in_row(int v, int64_t row, PhiloxKey key, const Dropout& dropout,
                                            float (&values)[kVector]) {
  const uint4 counter =
      make_uint4(static_cast<uint32_t>(v), static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), 0);
  drop(philox(counter, key), dropout, values);
}

// body(weight, bias) with pointers of the parameters' dtype.
template <class X, class Body>
__device__ __forceinline__ void with_parameters(const void* weight, const void* bias, bool are_float, Body body) {
  if constexpr (std::is_same_v<X, float>) {
    body(static_cast<const float*>(weight), static_cast<const float*>(bias));
  } else {
    if (are_float)
      body(static_cast<const float*>(weight), static_cast<const float*>(bias));
    else
      body(static_cast<const X*>(weight), static_cast<const X*>(bias));
  }
}

// A block has eight rows, one a warp, or one row.
template <int kThreads>
using ForwardRows = RowGroup<kThreads, kThreads == kWarp ? 8 : 1>;

// kChanged: something is added to x or dropped from it.
template <class X, class Sum, int kThreads, int kVectors, bool kChanged>
__global__ void __launch_bounds__(ForwardRows<kThreads>::kBlockThreads, 1)
    layer_norm_forward_rows(const LayerNormForward a) {
  using Group = ForwardRows<kThreads>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * Group::kRowsPerBlock + Group::row_in_block();
  if (row >= a.rows) return;  // a warp by itself: nobody waits for it
  const Columns<kThreads, kVectors> columns{a.width, Group::lane()};
  Packed<X> x[kVectors];
  columns.load(row_of<X>(a.x, row, a.width), x);
  float values[kVectors][kVector];
  if constexpr (kChanged) {
    Packed<Sum> residual[kVectors] = {};
    if (a.residual) columns.load(row_of<Sum>(a.residual, row, a.width), residual);
    const PhiloxKey key = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      widen(x[v], values[v]);
      if (a.dropout.threshold) drop_in_row(columns.begin(v) / kVector, row, key, a.dropout, values[v]);
      float added[kVector];
      widen(residual[v], added);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[v][i] += added[i];
      if (a.sum)
        widen(columns.store_vector(row_of<Sum>(a.sum, row, a.width), v, values[v]), values[v]);
      else
        round_to<Sum>(values[v]);
    }
  } else {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) widen(x[v], values[v]);
  }

  const float width = static_cast<float>(a.width);
  float sums[1] = {columns.total(values, [](float value) { return value; })};
  Group::sum(sums, 0);
  const float mean = sums[0] / width;
  sums[0] = columns.total(values, [mean](float value) { return (value - mean) * (value - mean); });
  Group::sum(sums, 1);
  const float rstd = 1.0f / sqrtf(sums[0] / width + a.eps);
  if (Group::lane() == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
  with_parameters<X>(a.weight, a.bias, a.float_parameters, [&](auto* weight, auto* bias) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float w[kVector], b[kVector] = {};
      columns.load_vector(weight, v, w);
      if (bias) columns.load_vector(bias, v, b);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[v][i] = (values[v][i] - mean) * rstd * w[i] + b[i];
      columns.store_vector(row_of<X>(a.y, row, a.width), v, values[v]);
    }
  });
}

// What a row of gradients needs. With n = (sum - mean) * rstd and g = grad_y * weight,
// grad_sum = rstd * (g - mean(g) - n * mean(g * n)), plus what comes in through the returned sum.
struct RowStatistics {
  float mean, rstd, mean_g, mean_gn;
};

__device__ __forceinline__ void normalise(const RowStatistics& row, float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = (values[i] - row.mean) * row.rstd;
}

// Adds one vector to the parameters' gradients and to the totals of g and of g * n.
__device__ __forceinline__ void gather_sums(const float (&grad_y)[kVector], const float (&n)[kVector],
                                            const float (&weight)[kVector], float (&grad_weight)[kVector],
                                            float (&grad_bias)[kVector], float (&totals)[2]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    grad_weight[i] += grad_y[i] * n[i];
    grad_bias[i] += grad_y[i];
    totals[0] += grad_y[i] * weight[i];
    totals[1] += grad_y[i] * weight[i] * n[i];
  }
}

// Adds what comes in through y to the gradient of the sum.
__device__ __forceinline__ void add_gradient(const float (&grad_y)[kVector], const float (&n)[kVector],
                                             const float (&weight)[kVector], const RowStatistics& row,
                                             float (&grad)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) grad[i] += (grad_y[i] * weight[i] - row.mean_g - n[i] * row.mean_gn) * row.rstd;
}

// The sums of a block's rows, added up in shared memory one row after the other.
template <int kThreads, int kRows, int kVectors>
__device__ __forceinline__ void write_partials(const Columns<kThreads, kVectors>& columns,
                                               const float (&sums)[kVectors][kVector], float* partial) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  for (int row = 0; row < kRows; ++row) {
    if (RowGroup<kThreads, kRows>::row_in_block() == row) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float total[kVector] = {};
        if (row > 0) columns.load_vector(shared, v, total);
#pragma unroll
        for (int i = 0; i < kVector; ++i) total[i] += sums[v][i];
        columns.store_vector(row < kRows - 1 ? shared : partial, v, total);
      }
    }
    if (kRows > 1) __syncthreads();
  }
}

inline constexpr int kMaxStages = 4;

// Waits for the oldest of `stages` groups of copies.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  if (stages == 4)
    copy_async_wait<3>();
  else if (stages == 3)
    copy_async_wait<2>();
  else
    copy_async_wait<1>();
}

// Blocks stay for many rows. The parameters' gradients gather in registers meanwhile: with many threads a row and few
// vectors a thread, few rows at a time fill a multiprocessor. So that these few keep the memory busy, the next ones are
// on their way to shared memory, a ring of a.stages of them.
template <class X, class Sum, int kThreads, int kRows, int kVectors>
__global__ void __launch_bounds__(kThreads* kRows) layer_norm_backward_rows(const LayerNormBackward a) {
  using Group = RowGroup<kThreads, kRows>;
  using StagedX = StagedColumns<X, kThreads * kRows, kVectors>;
  using StagedSum = StagedColumns<Sum, kThreads * kRows, kVectors>;
  const Columns<kThreads, kVectors> columns{a.width, Group::lane()};
  const PhiloxKey key = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRows;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + Group::row_in_block();
  const auto staged = [&](int stage) { return dynamic_shared() + stage * (StagedX::kBytes + StagedSum::kBytes); };
  const auto grad_y_of = [&](int stage) { return StagedX{reinterpret_cast<uint4*>(staged(stage))}; };
  const auto sum_of = [&](int stage) { return StagedSum{reinterpret_cast<uint4*>(staged(stage) + StagedX::kBytes)}; };
  const auto fetch = [&](int64_t row, int stage) {
    if (row < a.rows && a.grad_y) {
      grad_y_of(stage).load_async(columns, row_of<X>(a.grad_y, row, a.width));
      sum_of(stage).load_async(columns, row_of<Sum>(a.sum, row, a.width));
    }
    copy_async_commit();
  };
  for (int stage = 0; stage < a.stages - 1; ++stage) fetch(row + stage * stride, stage);

  float grad_weight[kVectors][kVector] = {}, grad_bias[kVectors][kVector] = {};
  int stage = 0, turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < a.rows; first += stride, row += stride) {
    const bool active = row < a.rows;
    fetch(row + (a.stages - 1) * stride, stage == 0 ? a.stages - 1 : stage - 1);
    Packed<Sum> incoming[kVectors] = {};
    if (active && a.grad_sum) columns.load(row_of<Sum>(a.grad_sum, row, a.width), incoming);
    wait_for_oldest(a.stages);
    float grad_y[kVectors][kVector], n[kVectors][kVector], totals[2] = {};
    RowStatistics statistics{};
    if (active && a.grad_y) {
      statistics.mean = a.mean[row];
      statistics.rstd = a.rstd[row];
      with_parameters<X>(a.weight, nullptr, a.float_parameters, [&](auto* weight, auto*) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (!columns.inside(v)) continue;
          float w[kVector];
          columns.load_vector(weight, v, w);
          widen(grad_y_of(stage).vector(v), grad_y[v]);
          widen(sum_of(stage).vector(v), n[v]);
          normalise(statistics, n[v]);
          gather_sums(grad_y[v], n[v], w, grad_weight[v], grad_bias[v], totals);
        }
      });
    }
    stage = stage + 1 == a.stages ? 0 : stage + 1;
    Group::sum(totals, turn);
    turn ^= 1;
    if (!active) continue;
    statistics.mean_g = totals[0] / static_cast<float>(a.width);
    statistics.mean_gn = totals[1] / static_cast<float>(a.width);
    with_parameters<X>(a.weight, nullptr, a.float_parameters, [&](auto* weight, auto*) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float grad[kVector], w[kVector];
        widen(incoming[v], grad);
        if (a.grad_y) {
          columns.load_vector(weight, v, w);
          add_gradient(grad_y[v], n[v], w, statistics, grad);
        }
        if (a.grad_residual) columns.store_vector(row_of<Sum>(a.grad_residual, row, a.width), v, grad);
        if (a.dropout.threshold) drop_in_row(columns.begin(v) / kVector, row, key, a.dropout, grad);
        columns.store_vector(row_of<X>(a.grad_x, row, a.width), v, grad);
      }
    });
  }
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  __syncthreads();  // the ring becomes the place of the sums
  write_partials<kThreads, kRows>(columns, grad_weight, a.partials + block * a.width);
  write_partials<kThreads, kRows>(columns, grad_bias, a.partials + (blocks + block) * a.width);
}

// Rows of any width and alignment: a block has one row at a time and reads it again in every pass, from the caches.
template <class X, class Sum, int kThreads>
__global__ void __launch_bounds__(kThreads) layer_norm_forward_any(const LayerNormForward a) {
  using Group = RowGroup<kThreads, 1>;
  const int64_t row = blockIdx.x;
  const PhiloxKey key = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  const X* x = row_of<X>(a.x, row, a.width);
  const Sum* source = row_of<Sum>(a.sum ? a.sum : a.x, row, a.width);
  float sums[1] = {};
  for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
    float values[kVector];
    load_any(x + v * kVector, count, values);
    if (a.sum) {
      if (a.dropout.threshold) drop_in_row(v, row, key, a.dropout, values);
      if (a.residual) {
        float residual[kVector];
        load_any(row_of<Sum>(a.residual, row, a.width) + v * kVector, count, residual);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] += residual[i];
      }
      round_to<Sum>(values);
      store_any(row_of<Sum>(a.sum, row, a.width) + v * kVector, count, values);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[0] += values[i];  // zero beyond the row
  });
  Group::sum(sums, 0);
  const float mean = sums[0] / static_cast<float>(a.width);
  sums[0] = 0.0f;
  for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
    float values[kVector];
    load_any(source + v * kVector, count, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[0] += i < count ? (values[i] - mean) * (values[i] - mean) : 0.0f;
  });
  Group::sum(sums, 1);
  const float rstd = 1.0f / sqrtf(sums[0] / static_cast<float>(a.width) + a.eps);
  if (threadIdx.x == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
  with_parameters<X>(a.weight, a.bias, a.float_parameters, [&](auto* weight, auto* bias) {
    for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
      float values[kVector], w[kVector], b[kVector] = {};
      load_any(source + v * kVector, count, values);
      load_any(weight + v * kVector, count, w);
      if (bias) load_any(bias + v * kVector, count, b);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = (values[i] - mean) * rstd * w[i] + b[i];
      store_any(row_of<X>(a.y, row, a.width) + v * kVector, count, values);
    });
  });
}

// The parameters' gradients gather where they are handed over: each thread adds to its own columns of the partial sums.
template <class X, class Sum, int kThreads>
__global__ void __launch_bounds__(kThreads) layer_norm_backward_any(const LayerNormBackward a) {
  using Group = RowGroup<kThreads, 1>;
  const PhiloxKey key = a.dropout.threshold ? philox_key(a.dropout) : PhiloxKey{};
  float* grad_weight = a.partials + static_cast<int64_t>(blockIdx.x) * a.width;
  float* grad_bias = a.partials + (static_cast<int64_t>(gridDim.x) + blockIdx.x) * a.width;
  const float zeros[kVector] = {};
  for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
    store_any(grad_weight + v * kVector, count, zeros);
    store_any(grad_bias + v * kVector, count, zeros);
  });
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
    RowStatistics statistics{a.mean[row], a.rstd[row], 0.0f, 0.0f};
    const auto load_row = [&](auto* weight, int v, int count, float (&grad_y)[kVector], float (&n)[kVector],
                              float (&w)[kVector]) {
      load_any(row_of<X>(a.grad_y, row, a.width) + v * kVector, count, grad_y);
      load_any(row_of<Sum>(a.sum, row, a.width) + v * kVector, count, n);
      load_any(weight + v * kVector, count, w);
      normalise(statistics, n);
    };
    float grad_y[kVector], n[kVector], w[kVector], totals[2] = {};
    if (a.grad_y)
      with_parameters<X>(a.weight, nullptr, a.float_parameters, [&](auto* weight, auto*) {
        for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
          float sums_weight[kVector], sums_bias[kVector];
          load_any(grad_weight + v * kVector, count, sums_weight);
          load_any(grad_bias + v * kVector, count, sums_bias);
          load_row(weight, v, count, grad_y, n, w);
          gather_sums(grad_y, n, w, sums_weight, sums_bias, totals);
          store_any(grad_weight + v * kVector, count, sums_weight);
          store_any(grad_bias + v * kVector, count, sums_bias);
        });
      });
    Group::sum(totals, turn);
    statistics.mean_g = totals[0] / static_cast<float>(a.width);
    statistics.mean_gn = totals[1] / static_cast<float>(a.width);
    with_parameters<X>(a.weight, nullptr, a.float_parameters, [&](auto* weight, auto*) {
      for_each_vector(a.width, threadIdx.x, kThreads, [&](int v, int count) {
        float grad[kVector] = {};
        if (a.grad_sum) load_any(row_of<Sum>(a.grad_sum, row, a.width) + v * kVector, count, grad);
        if (a.grad_y) {
          load_row(weight, v, count, grad_y, n, w);
          add_gradient(grad_y, n, w, statistics, grad);
        }
        if (a.grad_residual) store_any(row_of<Sum>(a.grad_residual, row, a.width) + v * kVector, count, grad);
        if (a.dropout.threshold) drop_in_row(v, row, key, a.dropout, grad);
        store_any(row_of<X>(a.grad_x, row, a.width) + v * kVector, count, grad);
      });
    });
  }
}

}  // namespace fastssl::cuda
