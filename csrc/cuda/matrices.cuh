// Tiles of 16-bit elements in shared memory, and products of them by the tensor cores, sums in float32.
//
// A warp has kRowTiles x 16 rows of a product. What it holds of them follows the fragments of the instruction
// (cuda/platform.cuh): Sums for results, Left for the left operand.
#pragma once

#include "cuda/reductions.cuh"
#include "cuda/vectors.cuh"

namespace fastssl::cuda {

__device__ __forceinline__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

// kRows rows of kWidth elements, a multiple of 32. Chunks of 16 bytes change places within a row so that the same chunk
// of eight rows that follow each other lies in all 32 banks.
template <int kRows, int kWidth>
struct Tile {
  static_assert(kWidth % 32 == 0);
  static constexpr int kChunks = kWidth / kVector, kBytes = kRows * kChunks * static_cast<int>(sizeof(uint4));
  unsigned char* memory;

  __device__ __forceinline__ uint4* at(int row, int chunk) const {
    const int turn = kWidth % 64 == 0 ? row % 8 : row / 2 % 4;
    return reinterpret_cast<uint4*>(memory) + row * kChunks + (chunk ^ turn);
  }
};

// Rows [kCount index, kCount (index + 1)) of a tile.
template <int kCount, int kRows, int kWidth>
__device__ __forceinline__ Tile<kCount, kWidth> rows_of_tile(const Tile<kRows, kWidth>& tile, int index) {
  static_assert(kCount % 8 == 0);  // chunks are where they are in a tile of these rows alone
  return {tile.memory + index * Tile<kCount, kWidth>::kBytes};
}

// Rows of a matrix in global memory, of which the first `count` and their first `width` elements exist.
template <class T>
struct RowsInMemory {
  T* first;
  int64_t stride;
  int64_t count;
  int width;
  bool aligned;  // 16-byte accesses may start at every eighth element
};

// Starts copying into a tile; what does not exist becomes zero. All of kThreads threads call, and wait as for
// copy_async_16.
template <int kThreads, class T, int kRows, int kWidth>
__device__ __forceinline__ void load_async(const Tile<kRows, kWidth>& tile, const RowsInMemory<const T>& rows) {
  static_assert(kRows * tile.kChunks % kThreads == 0);
  if (rows.aligned) {
#pragma unroll 1  // nobody waits for a copy here, and addresses kept ahead would fill the registers
    for (int i = 0; i < kRows * tile.kChunks / kThreads; ++i) {
      const int place = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = place / tile.kChunks, chunk = place % tile.kChunks;
      const bool inside = row < rows.count && chunk * kVector < rows.width;
      copy_async_16_or_zero(tile.at(row, chunk), rows.first + (inside ? row * rows.stride + chunk * kVector : 0),
                            inside);
    }
    return;
  }
#pragma unroll 1  // seldom: registers matter more
  for (int place = static_cast<int>(threadIdx.x); place < kRows * tile.kChunks; place += kThreads) {
    const int row = place / tile.kChunks, chunk = place % tile.kChunks;
    const int left = row < rows.count ? rows.width - chunk * kVector : 0;
    float values[kVector] = {};
    if (left > 0) load_any(rows.first + row * rows.stride + chunk * kVector, left < kVector ? left : kVector, values);
    *tile.at(row, chunk) = narrow<T>(values).words[0];
  }
}

// The warp writes rows [row, row + kCount) of a tile to memory, as far as they exist there.
template <int kCount, class T, int kRows, int kWidth>
__device__ __forceinline__ void store_rows(const Tile<kRows, kWidth>& tile, int row, const RowsInMemory<T>& rows) {
#pragma unroll 1
  for (int place = lane_of_warp(); place < kCount * tile.kChunks; place += kWarp) {
    const int r = row + place / tile.kChunks, chunk = place % tile.kChunks;
    const int left = rows.width - chunk * kVector;
    if (r >= rows.count || left <= 0) continue;
    T* to = rows.first + r * rows.stride + chunk * kVector;
    const Packed<T> packed{*tile.at(r, chunk)};
    if (rows.aligned) {
      store_packed(to, packed);
    } else {
      float values[kVector];
      widen(packed, values);
      store_any(to, left < kVector ? left : kVector, values);
    }
  }
}

// Element e of [row tile][column tile] is row 16 r + 8 (e / 2) + lane / 4, column 8 n + 2 (lane % 4) + e % 2.
template <int kRowTiles, int kColumns>
struct Sums {
  static constexpr int kTiles = kColumns / 8;
  float at[kRowTiles][kTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[r][n][e] = 0.0f;
  }
};

template <int kRowTiles, int kDepth>
struct Left {
  uint4 at[kDepth / 16][kRowTiles];
};

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1, BFloat16) {
  multiply_bfloat16(c, a, b_0, b_1);
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1, Half) {
  multiply_half(c, a, b_0, b_1);
}

// The 16 x 16 block of a tile that begins at a row and at column 16 k, as a left operand.
template <int kRows, int kWidth>
__device__ __forceinline__ uint4 left_block(const Tile<kRows, kWidth>& tile, int row, int k) {
  const int lane = lane_of_warp();
  return load_matrices<false>(tile.at(row + lane % 16, 2 * k + lane / 16));
}

template <int kRowTiles, int kRows, int kWidth>
__device__ __forceinline__ Left<kRowTiles, kWidth> left_of(const Tile<kRows, kWidth>& tile, int row) {
  Left<kRowTiles, kWidth> a;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) a.at[k][r] = left_block(tile, row + 16 * r, k);
  return a;
}

// Rows of a tile from `row` on, a left operand that is read whenever it is needed and takes few registers.
template <int kRowTiles, int kRows, int kDepth>
struct LeftInShared {
  Tile<kRows, kDepth> tile;
  int row;
};

template <bool kInRegisters, int kRowTiles, int kRows, int kWidth>
__device__ __forceinline__ auto left_of(const Tile<kRows, kWidth>& tile, int row) {
  if constexpr (kInRegisters)
    return left_of<kRowTiles>(tile, row);
  else
    return LeftInShared<kRowTiles, kRows, kWidth>{tile, row};
}

// Sums, narrowed, are a left operand as they lie.
template <class T, int kRowTiles, int kColumns>
__device__ __forceinline__ Left<kRowTiles, kColumns> left_of(const Sums<kRowTiles, kColumns>& c) {
  Left<kRowTiles, kColumns> a;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      const float (&low)[4] = c.at[r][2 * k];
      const float (&high)[4] = c.at[r][2 * k + 1];
      a.at[k][r] = make_uint4(narrow(low[0], low[1], T{}), narrow(low[2], low[3], T{}), narrow(high[0], high[1], T{}),
                              narrow(high[2], high[3], T{}));
    }
  return a;
}

// c += A B^T over columns 16 k to 16 k + 15, of which `a` has those of A.
template <class T, int kRowTiles, int kColumns, int kDepth>
__device__ __forceinline__ void add_rows(Sums<kRowTiles, kColumns>& c, const uint4 (&a)[kRowTiles],
                                         const Tile<kColumns, kDepth>& b, int k) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int n = 0; n < kColumns / 16; ++n) {
    const uint4 right = load_matrices<false>(b.at(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      multiply_add(c.at[r][2 * n], a[r], right.x, right.y, T{});
      multiply_add(c.at[r][2 * n + 1], a[r], right.z, right.w, T{});
    }
  }
}

// c = A B^T: rows with rows.
template <class T, int kRowTiles, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_rows(Sums<kRowTiles, kColumns>& c, const Left<kRowTiles, kDepth>& a,
                                              const Tile<kColumns, kDepth>& b) {
  c.clear();
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) add_rows<T>(c, a.at[k], b, k);
}

template <class T, int kRowTiles, int kColumns, int kRows, int kDepth>
__device__ __forceinline__ void multiply_rows(Sums<kRowTiles, kColumns>& c,
                                              const LeftInShared<kRowTiles, kRows, kDepth>& a,
                                              const Tile<kColumns, kDepth>& b) {
  c.clear();
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    uint4 left[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) left[r] = left_block(a.tile, a.row + 16 * r, k);
    add_rows<T>(c, left, b, k);
  }
}

// c += A B.
template <class T, int kRowTiles, int kDepth, int kWidth>
__device__ __forceinline__ void add_product(Sums<kRowTiles, kWidth>& c, const Left<kRowTiles, kDepth>& a,
                                            const Tile<kDepth, kWidth>& b) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k)
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      const uint4 right = load_matrices<true>(b.at(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply_add(c.at[r][2 * n], a.at[k][r], right.x, right.y, T{});
        multiply_add(c.at[r][2 * n + 1], a.at[k][r], right.z, right.w, T{});
      }
    }
}

// Sums, narrowed, into the rows of a tile from `row` on, which nobody but this warp may use.
template <class T, int kRowTiles, int kRows, int kWidth>
__device__ __forceinline__ void put_sums(const Sums<kRowTiles, kWidth>& c, const Tile<kRows, kWidth>& tile, int row) {
  const int lane = lane_of_warp();
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        auto* words = reinterpret_cast<uint32_t*>(tile.at(row + 16 * r + 8 * half + lane / 4, n));
        words[lane % 4] = narrow(c.at[r][n][2 * half], c.at[r][n][2 * half + 1], T{});
      }
  __syncwarp();
}

// Four lanes that follow each other hold a 4 x 4 matrix of words, a row each; they get its columns.
__device__ __forceinline__ uint4 transpose_in_quad(uint4 words) {
  const bool odd = lane_of_warp() % 2, upper = lane_of_warp() / 2 % 2;
  const auto exchange = [](uint32_t& low, uint32_t& high, bool second, int distance) {
    const uint32_t other = __shfl_xor_sync(kWholeWarp, second ? low : high, distance);
    if (second)
      low = other;
    else
      high = other;
  };
  exchange(words.x, words.y, odd, 1);
  exchange(words.z, words.w, odd, 1);
  exchange(words.x, words.z, upper, 2);
  exchange(words.y, words.w, upper, 2);
  return words;
}

}  // namespace fastssl::cuda
