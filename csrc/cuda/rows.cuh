// Rows of a matrix, shared by the threads of a warp or of a block.
#pragma once

#include "cuda/reductions.cuh"
#include "cuda/vectors.cuh"

namespace fastssl::cuda {

// kThreads threads share a row, a multiple of a warp; a block has kRows rows at a time.
template <int kThreads, int kRows>
struct RowGroup {
  static constexpr int kRowsPerBlock = kRows, kBlockThreads = kThreads * kRows;

  __device__ static int lane() {
    return static_cast<int>(threadIdx.x) % kThreads;
  }
  __device__ static int row_in_block() {
    return static_cast<int>(threadIdx.x) / kThreads;
  }

  // Sums over each row, for all of its threads; all of the block must call. `turn` alternates between 0 and 1.
  template <int kCount>
  __device__ __forceinline__ static void sum(float (&values)[kCount], int turn) {
    reduce(values, turn, 0.0f, [](float a, float b) { return a + b; });
  }
  // The largest, likewise; it passes over NaN.
  __device__ __forceinline__ static float maximum(float value, int turn) {
    float values[1] = {value};
    reduce(values, turn, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
    return values[0];
  }

 private:
  template <int kCount, class Operation>
  __device__ __forceinline__ static void reduce(float (&values)[kCount], int turn, float identity,
                                                Operation operation) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = reduce_warp(values[i], operation);
    constexpr int kWarps = kThreads / kWarp;
    if constexpr (kWarps == 1) return;
    __shared__ float scratch[2][kRows * kWarps][kCount];  // one barrier a call: nobody reads what the next call writes
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) scratch[turn][warp][i] = values[i];
    }
    __syncthreads();
    const int first = row_in_block() * kWarps;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (kWarps > 4) {
        values[i] = reduce_warp(lane < kWarps ? scratch[turn][first + lane][i] : identity, operation);
      } else {
        values[i] = scratch[turn][first][i];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) values[i] = operation(values[i], scratch[turn][first + w][i]);
      }
    }
  }
};

// The columns that a thread holds in registers: vectors lane, lane + kThreads, ... of a row of whole vectors, each of
// which begins at a 16-byte address. What lies beyond the row is zero.
template <int kThreads, int kVectors>
struct Columns {
  int width, lane;

  __device__ __forceinline__ int begin(int v) const {
    return (v * kThreads + lane) * kVector;
  }
  __device__ __forceinline__ bool inside(int v) const {
    return begin(v) < width;
  }

  template <class T>
  __device__ __forceinline__ void load(const T* row, Packed<T> (&packed)[kVectors]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) packed[v] = inside(v) ? load_packed(row + begin(v)) : Packed<T>{};
  }

  template <class T>
  __device__ __forceinline__ void load_vector(const T* row, int v, float (&values)[kVector]) const {
    widen(inside(v) ? load_packed(row + begin(v)) : Packed<T>{}, values);
  }

  // Returns the values as they are stored.
  template <class T>
  __device__ __forceinline__ Packed<T> store_vector(T* row, int v, const float (&values)[kVector]) const {
    const Packed<T> packed = narrow<T>(values);
    if (inside(v)) store_packed(row + begin(v), packed);
    return packed;
  }

  // What body(value) gives, summed over the elements of this thread.
  template <class Body>
  __device__ __forceinline__ float total(const float (&values)[kVectors][kVector], Body body) const {
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float part = 0.0f;
#pragma unroll
      for (int i = 0; i < kVector; ++i) part += body(values[v][i]);
      sum += inside(v) ? part : 0.0f;
    }
    return sum;
  }
};

// The columns of each thread of a block in shared memory, on their way there without registers. A thread reads what it
// asked for itself, so there is nothing to synchronise.
template <class T, int kBlockThreads, int kVectors>
struct StagedColumns {
  static constexpr int kBytes = kBlockThreads * kVectors * static_cast<int>(sizeof(Packed<T>));
  uint4* words;  // (word of the vector, vector, thread)

  __device__ __forceinline__ uint4* at(int v, int word) const {
    return words + (word * kVectors + v) * kBlockThreads + threadIdx.x;
  }
  template <int kThreads>
  __device__ __forceinline__ void load_async(const Columns<kThreads, kVectors>& columns, const T* row) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int word = 0; word < Packed<T>::kWords; ++word)
        if (columns.inside(v)) copy_async_16(at(v, word), words_at(row + columns.begin(v)) + word);
  }
  __device__ __forceinline__ Packed<T> vector(int v) const {
    Packed<T> packed;
#pragma unroll
    for (int word = 0; word < Packed<T>::kWords; ++word) packed.words[word] = *at(v, word);
    return packed;
  }
};

// body(vector, count) for the vectors of a row of any width and alignment that are this thread's, of `threads`; count
// of the eight elements lie inside the row.
template <class Body>
__device__ __forceinline__ void for_each_vector(int width, int thread, int threads, Body body) {
  for (int v = thread; v * kVector < width; v += threads) {
    const int left = width - v * kVector;
    body(v, left < kVector ? left : kVector);
  }
}

}  // namespace fastssl::cuda
