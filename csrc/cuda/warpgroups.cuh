// What kernels for compute capability 9.0 are made of: panels of rows in shared memory, their products by warpgroups,
// and rings of panels that one thread fills while the others multiply.
#pragma once

#include "cuda/hopper.cuh"

namespace fastssl::cuda {

template <int kRows, int kWidth>
struct PanelRows;

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
  __device__ __forceinline__ PanelRows<kRows, kWidth> from(int row) const {
    return {*this, row};
  }
  // The operand that begins at a row, a multiple of 8, where a row of it is one of a matrix, and that of column 16 k.
  __device__ __forceinline__ SharedMatrix rows_from(int row) const {
    return moved(shared_matrix(shared_address(memory), 16), static_cast<uint32_t>(row * 128));
  }
  static __device__ __forceinline__ SharedMatrix at_column(SharedMatrix rows, int k) {
    return moved(rows, static_cast<uint32_t>(k / 4 * kBlockBytes + k % 4 * 32));
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

// Rows of a panel from `row` on, a multiple of 16, as an operand that stays where it is.
template <int kRows, int kWidth>
struct PanelRows {
  Panel<kRows, kWidth> panel;
  int row;
};

// Starts c = A B^T: 64 rows of a panel with kColumns of another.
template <class T, int kLeftRows, int kRightRows, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_rows_async(Sums<1, kColumns>& c, const PanelRows<kLeftRows, kDepth>& a,
                                                    const PanelRows<kRightRows, kDepth>& b) {
  const SharedMatrix left = a.panel.rows_from(made_anew(a.row)), right = b.panel.rows_from(b.row);
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k)
    multiply_async<T, false, false>(c, a.panel.at_column(left, k), b.panel.at_column(right, k), k > 0);
}

// Starts c += A B, or c = A B, with kDepth rows of a panel.
template <class T, int kRows, int kDepth, int kWidth>
__device__ __forceinline__ void add_product_async(Sums<1, kWidth>& c, const Left<1, kDepth>& a,
                                                  const PanelRows<kRows, kWidth>& b, bool add) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k)
    multiply_async<T, true>(c, a.at[k][0], b.panel.all_columns(b.row / 16 + k), add || k > 0);
}

// Starts c = A^T B: 64 columns of two panels each, that of `b` its block `block`, over all their rows.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void multiply_columns_async(Sums<1, 64>& c, const Panel<kRows, 64>& a,
                                                       const Panel<kRows, kWidth>& b, int block) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    multiply_async<T, true, true>(c, a.all_columns(k),
                                  moved(b.all_columns(k), static_cast<uint32_t>(block * b.kBlockBytes)), k > 0);
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

// The same, or rows that stay where they are: those of the warpgroup, or of the warp.
template <bool kInRegisters, int kRows, int kWidth>
__device__ __forceinline__ auto left_rows(const Panel<kRows, kWidth>& panel, int row_of_group, int row_of_warp) {
  if constexpr (kInRegisters)
    return left_of(panel, row_of_warp);
  else
    return PanelRows<kRows, kWidth>{panel, row_of_group};
}

// Starts c = A B^T with kColumns rows of a panel.
template <class T, int kRows, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_rows_async(Sums<1, kColumns>& c, const Left<1, kDepth>& a,
                                                    const PanelRows<kRows, kDepth>& b) {
  const SharedMatrix right = b.panel.rows_from(b.row);
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) multiply_async<T, false>(c, a.at[k][0], b.panel.at_column(right, k), k > 0);
}

// Sums, narrowed, into this warp's rows of a panel, from `row` on, and its columns from 8 `chunk` on.
template <class T, int kRows, int kWidth, int kColumns>
__device__ __forceinline__ void put_sums(const Sums<1, kColumns>& c, const Panel<kRows, kWidth>& panel, int row,
                                         int chunk = 0) {
  const int lane = lane_read_anew();
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* words = reinterpret_cast<uint32_t*>(panel.at(row + 8 * half + lane / 4, chunk + n));
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

// A warp writes sums to its 16 rows of memory, from `row` on, and to columns from `column` on: whole vectors.
template <class T, int kColumns>
__device__ __forceinline__ void store_sums(const Sums<1, kColumns>& c, const RowsInMemory<T>& rows, int row,
                                           int column) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = narrow(c.at[0][n + i][2 * half], c.at[0][n + i][2 * half + 1], T{});
      const uint4 vector = transpose_in_quad(make_uint4(words[0], words[1], words[2], words[3]));
      const int r = row + 8 * half + lane / 4, first = column + (n + lane % 4) * kVector;
      if (r < rows.count && first < rows.width) store_packed(rows.first + r * rows.stride + first, Packed<T>{vector});
    }
}

// Panels that are filled again and again, fill by fill: fill n lies in panel n % kPanels. Every warp that reads a panel
// waits for it and gives it back; fills that are read several times are given back once.
template <int kPanels>
struct Ring {
  Barrier* full;   // kPanels of each
  Barrier* empty;  // warps

  // One thread fills, or `fillers` warps together.
  __device__ __forceinline__ void initialise(uint32_t warps, uint32_t fillers = 1) const {
    for (int i = 0; i < kPanels; ++i) {
      full[i].initialise(fillers);
      empty[i].initialise(warps);
    }
  }
  static __device__ __forceinline__ int panel_of(unsigned fill) {
    return static_cast<int>(fill % kPanels);
  }
  // The thread that fills: waits until everyone has given the panel back, and announces what comes.
  __device__ __forceinline__ Barrier& begin_fill(unsigned fill, int bytes) const {
    wait_to_fill(fill);
    full[panel_of(fill)].arrive_and_expect(static_cast<uint32_t>(bytes));
    return full[panel_of(fill)];
  }
  __device__ __forceinline__ void wait_to_fill(unsigned fill) const {
    empty[panel_of(fill)].wait(fill / kPanels + 1);  // of the fill before in the same panel; the first passes
  }
  // A whole warp, which has written its part for products to read.
  __device__ __forceinline__ void hand_over(unsigned fill) const {
    fence_for_async();
    __syncwarp();
    if (lane_read_anew() == 0) full[panel_of(fill)].arrive();
  }
  __device__ __forceinline__ void wait(unsigned fill) const {
    full[panel_of(fill)].wait(fill / kPanels);
  }
  // A whole warp, which does not read the panel any more.
  __device__ __forceinline__ void give_back(unsigned fill) const {
    __syncwarp();
    if (lane_read_anew() == 0) empty[panel_of(fill)].arrive();
  }
};

}  // namespace fastssl::cuda
