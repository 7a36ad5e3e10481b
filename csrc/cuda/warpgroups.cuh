// What kernels for compute capability 9.0 are made of: panels of rows in shared memory, their products by warpgroups,
// and rings of panels that one thread fills while the others multiply.
#pragma once

#include "cuda/hopper.cuh"

namespace fastssl::cuda {

// kRows rows of kWidth 16-bit elements, a multiple of 64, at a multiple of 1024 bytes: block by block of 64 columns, as
// copy_box leaves them.
template <int kRows, int kWidth>
struct Panel {
  static_assert(kRows % 8 == 0 && kWidth % 64 == 0);
  static constexpr int kChunks = kWidth / kVector, kBlockBytes = kRows * 128, kBytes = kBlockBytes * (kWidth / 64);
  unsigned char* memory;

  __device__ __forceinline__ uint4* at(int row, int chunk) const {
    return reinterpret_cast<uint4*>(memory + chunk / 8 * kBlockBytes + row * 128) + (chunk % 8 ^ row % 8);
  }
  // The operand that begins at a row, a multiple of 8, and at column 16 k, where a row of it is one of a matrix.
  __device__ __forceinline__ SharedMatrix rows_from(int row, int k) const {
    return moved(shared_matrix(shared_address(memory), 16),
                 static_cast<uint32_t>(k / 4 * kBlockBytes + row * 128 + k % 4 * 32));
  }
  // The operand of 16 rows of all columns, rows of a right matrix.
  __device__ __forceinline__ SharedMatrix all_columns(int k) const {
    return moved(shared_matrix(shared_address(memory), kBlockBytes), static_cast<uint32_t>(k * 16 * 128));
  }
};

// One thread starts copying rows of one head; those that do not exist, and columns, become zero.
template <int kRows, int kWidth>
__device__ __forceinline__ void copy_panel(const Panel<kRows, kWidth>& panel, const TensorMap& map, Barrier& barrier,
                                           int row, int head, int sequence) {
#pragma unroll
  for (int block = 0; block < kWidth / 64; ++block)
    copy_box(panel.memory + block * panel.kBlockBytes, map, barrier, 64 * block, row, head, sequence);
}

// A warpgroup writes zeros to rows from `row` on, and meets at `barrier`; products may follow.
template <int kRows, int kWidth>
__device__ __forceinline__ void clear_rows(const Panel<kRows, kWidth>& panel, int row, int barrier) {
  for (int place = static_cast<int>(threadIdx.x) % kWarpgroup; place < (kRows - row) * panel.kChunks;
       place += kWarpgroup)
    *panel.at(row + place / panel.kChunks, place % panel.kChunks) = make_uint4(0, 0, 0, 0);
  fence_for_async();
  meet(barrier, kWarpgroup);
}

// Starts c = A B^T: 64 rows of a panel from `row` on with all rows of another.
template <class T, int kRows, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_rows_async(Sums<1, kColumns>& c, const Panel<kRows, kDepth>& a, int row,
                                                    const Panel<kColumns, kDepth>& b) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) multiply_async<T, false>(c, a.rows_from(row, k), b.rows_from(0, k), k > 0);
}

// Starts c += A B, or c = A B.
template <class T, int kDepth, int kWidth>
__device__ __forceinline__ void add_product_async(Sums<1, kWidth>& c, const Left<1, kDepth>& a,
                                                  const Panel<kDepth, kWidth>& b, bool add) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) multiply_async<T, true>(c, a.at[k][0], b.all_columns(k), add || k > 0);
}

// Rows of a panel from `row` on, 16 of them this warp's, as a left operand.
template <int kRows, int kWidth>
__device__ __forceinline__ Left<1, kWidth> left_of(const Panel<kRows, kWidth>& panel, int row) {
  const int lane = lane_of_warp();
  Left<1, kWidth> a;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) a.at[k][0] = load_matrices<false>(panel.at(row + lane % 16, 2 * k + lane / 16));
  return a;
}

// Starts c = A B^T with all rows of a panel.
template <class T, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_rows_async(Sums<1, kColumns>& c, const Left<1, kDepth>& a,
                                                    const Panel<kColumns, kDepth>& b) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) multiply_async<T, false>(c, a.at[k][0], b.rows_from(0, k), k > 0);
}

// Sums, narrowed, into this warp's rows of a panel, from `row` on.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void put_sums(const Sums<1, kWidth>& c, const Panel<kRows, kWidth>& panel, int row) {
  const int lane = lane_read_anew();
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* words = reinterpret_cast<uint32_t*>(panel.at(row + 8 * half + lane / 4, n));
      words[lane % 4] = narrow(c.at[0][n][2 * half], c.at[0][n][2 * half + 1], T{});
    }
}

// The warp writes 16 rows of a panel, from `row` on, to memory, as far as they exist there: whole vectors.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void store_rows(const Panel<kRows, kWidth>& panel, int row, const RowsInMemory<T>& rows) {
  const int lane = lane_read_anew();
#pragma unroll
  for (int i = 0; i < 16 * panel.kChunks / kWarp; ++i) {
    const int place = i * kWarp + lane;
    const int r = row + place / panel.kChunks, chunk = place % panel.kChunks;
    if (r < rows.count && chunk * kVector < rows.width)
      store_packed(rows.first + r * rows.stride + chunk * kVector, Packed<T>{*panel.at(r, chunk)});
  }
}

// Panels that are filled again and again, fill by fill: fill n lies in panel n % kPanels. Every warp that reads a panel
// waits for it and gives it back; fills that are read several times are given back once.
template <int kPanels>
struct Ring {
  Barrier* full;   // kPanels of each
  Barrier* empty;  // warps

  __device__ __forceinline__ void initialise(uint32_t warps) const {
    for (int i = 0; i < kPanels; ++i) {
      full[i].initialise(1);
      empty[i].initialise(warps);
    }
  }
  static __device__ __forceinline__ int panel_of(unsigned fill) {
    return static_cast<int>(fill % kPanels);
  }
  // The thread that fills: waits until everyone has given the panel back, and announces what comes.
  __device__ __forceinline__ Barrier& begin_fill(unsigned fill, int bytes) const {
    empty[panel_of(fill)].wait(fill / kPanels + 1);  // of the fill before in the same panel; the first passes
    full[panel_of(fill)].arrive_and_expect(static_cast<uint32_t>(bytes));
    return full[panel_of(fill)];
  }
  __device__ __forceinline__ void wait(unsigned fill) const {
    full[panel_of(fill)].wait(fill / kPanels);
  }
  // A whole warp, which does not read the panel any more.
  __device__ __forceinline__ void give_back(unsigned fill) const {
    __syncwarp();
    if (lane_of_warp() == 0) empty[panel_of(fill)].arrive();
  }
};

}  // namespace fastssl::cuda
