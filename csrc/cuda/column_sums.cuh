// Column sums in two steps with the same bits on every run: blocks of rows leave partial sums, which are added in
// order.
#pragma once

#include <algorithm>

#include "cuda/vectors.cuh"

namespace fastssl::cuda {

inline constexpr int kSumColumns = 32, kSumThreads = 16;  // columns of a block, threads that share a column

struct SumBlocks {
  const float* partials;  // (matrices, blocks, width)
  float* total_0;         // (width), of the first matrix
  float* total_1;         // of the second, if there is one
  int64_t blocks;
  int width;
  bool accumulate;  // else totals are written
};

template <int kThreads>
__global__ void __launch_bounds__(kSumColumns* kThreads) sum_blocks(const SumBlocks a) {
  __shared__ float sums[kThreads][kSumColumns];
  const int column = static_cast<int>(blockIdx.x * kSumColumns + threadIdx.x);
  float sum = 0.0f;
  if (column < a.width) {
    const float* partials = a.partials + blockIdx.y * a.blocks * a.width + column;
#pragma unroll 4
    for (int64_t block = threadIdx.y; block < a.blocks; block += kThreads) sum += partials[block * a.width];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= a.width) return;
  float* total = (blockIdx.y == 0 ? a.total_0 : a.total_1) + column;
  sum = a.accumulate ? *total : 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads; ++i) sum += sums[i][threadIdx.x];
  *total = sum;
}

inline void launch_sum_blocks(const SumBlocks& a, int matrices, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((a.width + kSumColumns - 1) / kSumColumns), static_cast<unsigned>(matrices));
  launch(sum_blocks<kSumThreads>, blocks, dim3(kSumColumns, kSumThreads), 0, stream, a);
}

inline constexpr int kColumnSumThreads = 128, kColumnSumRowsAtOnce = 4;

template <class T>
struct ColumnSums {
  const T* matrix;  // (rows, width), row_stride elements from row to row
  float* partials;  // (blocks, width)
  int64_t rows, row_stride, rows_per_block;
  int width;
};

// The partial sums of blocks of rows, a vector of columns a thread.
template <class T>
__global__ void __launch_bounds__(kColumnSumThreads) column_sums(const ColumnSums<T> a) {
  const int v = static_cast<int>(blockIdx.x) * kColumnSumThreads + static_cast<int>(threadIdx.x);
  const int count = a.width - v * kVector < kVector ? a.width - v * kVector : kVector;
  if (count <= 0) return;
  int64_t row = blockIdx.y * a.rows_per_block;
  const int64_t end = row + a.rows_per_block < a.rows ? row + a.rows_per_block : a.rows;
  const T* p = a.matrix + row * a.row_stride + v * kVector;
  float sums[kVector] = {};
  if (count == kVector && reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0 &&
      a.row_stride * static_cast<int64_t>(sizeof(T)) % static_cast<int64_t>(sizeof(uint4)) == 0) {
    for (; row + kColumnSumRowsAtOnce <= end; row += kColumnSumRowsAtOnce, p += kColumnSumRowsAtOnce * a.row_stride) {
      Packed<T> packed[kColumnSumRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kColumnSumRowsAtOnce; ++r) packed[r] = load_packed(p + r * a.row_stride);
#pragma unroll
      for (int r = 0; r < kColumnSumRowsAtOnce; ++r) {
        float values[kVector];
        widen(packed[r], values);
#pragma unroll
        for (int i = 0; i < kVector; ++i) sums[i] += values[i];
      }
    }
  }
  for (; row < end; ++row, p += a.row_stride) {
    float values[kVector];
    load_any(p, count, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] += values[i];
  }
  store_any(a.partials + blockIdx.y * static_cast<int64_t>(a.width) + v * kVector, count, sums);
}

// How many blocks of how many rows: a matter of the number of rows alone.
struct ColumnSumBlocks {
  int64_t rows_per_block, count;

  explicit ColumnSumBlocks(int64_t rows) {
    constexpr int64_t kMinRows = 64, kMaxBlocks = 1024;
    rows_per_block = std::max(kMinRows, (rows + kMaxBlocks - 1) / kMaxBlocks);
    count = (rows + rows_per_block - 1) / rows_per_block;
  }
};

// total = (accumulate ? total : 0) + the sum over rows of matrix; `partials` has room for blocks.count rows.
template <class T>
void launch_column_sums(const T* matrix, int64_t rows, int64_t row_stride, int width, const ColumnSumBlocks& blocks,
                        float* partials, bool accumulate, float* total, cudaStream_t stream) {
  constexpr int kColumns = kColumnSumThreads * kVector;
  const dim3 grid(static_cast<unsigned>((width + kColumns - 1) / kColumns), static_cast<unsigned>(blocks.count));
  launch(column_sums<T>, grid, dim3(kColumnSumThreads), 0, stream,
         ColumnSums<T>{matrix, partials, rows, row_stride, blocks.rows_per_block, width});
  launch_sum_blocks({partials, total, nullptr, blocks.count, width, accumulate}, 1, stream);
}

}  // namespace fastssl::cuda
