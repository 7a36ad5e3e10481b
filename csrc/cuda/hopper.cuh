// What compute capability 9.0 adds: barriers in shared memory that count bytes, copies of tensor tiles, and products of
// whole warpgroups, all of which go on while the threads do something else.
//
// For files that are compiled for sm_90a alone (*_sm90a.cu). A plain C++ compiler reads
// tests/cuda_emulation/hopper_on_host.h instead, which has a twin of each name.
#pragma once

#include "cuda/matrices.cuh"

namespace fastssl::cuda {

inline constexpr int kWarpgroup = 4 * kWarp;

// The registers of each thread of a block that has a multiprocessor for itself, before any are given up. What
// warpgroups take comes from these: who takes more than others give up waits for ever.
constexpr int registers_at_first(int threads) {
  return 65536 / threads / 8 * 8;
}

// A matrix of 16-bit elements in shared memory as products take it: blocks of 64 columns, of which a row is 128 bytes.
// Within 1024 bytes, chunks of 16 bytes change places as the tensor copies leave them: that of address a lies at
// a ^ (a / 128 % 8 * 16). Bits 0-13 are the address, 16-29 the bytes from a block of columns to the next, where an
// operand goes over several, 32-45 those from eight rows to the next, all divided by 16, and 62 is this way of changing
// places (PTX ISA, "Matrix Descriptor Format").
struct SharedMatrix {
  uint64_t bits;
};

__device__ __forceinline__ SharedMatrix shared_matrix(uint32_t address, uint32_t bytes_to_next_columns) {
  constexpr uint64_t kBytesToNextRows = 1024;
  return {address / 16 | uint64_t{bytes_to_next_columns / 16} << 16 | kBytesToNextRows / 16 << 32 | uint64_t{1} << 62};
}

// The same, a number of bytes further on.
__device__ __forceinline__ SharedMatrix moved(SharedMatrix matrix, uint32_t bytes) {
  return {matrix.bits + bytes / 16};
}

}  // namespace fastssl::cuda

#ifndef __CUDACC__
#include "hopper_on_host.h"
#else

#include <cuda.h>
#include <cudaTypedefs.h>

namespace fastssl::cuda {

// A tensor of (sequences, heads, rows, columns) as copies of tiles see it. A kernel takes it as a __grid_constant__.
using TensorMap = CUtensorMap;

// `columns` is the length of a row; distances are in elements, multiples of 8, and so is the address a multiple of 16
// bytes. Copies take boxes of box_rows x 64.
inline TensorMap tensor_map(const void* data, int64_t columns, int64_t rows, int64_t heads, int64_t sequences,
                            int64_t row_distance, int64_t head_distance, int64_t sequence_distance, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("fastssl: CUDA: this driver has no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  TensorMap map;
  const auto unsigned_of = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t sizes[4] = {unsigned_of(columns), unsigned_of(rows), unsigned_of(heads), unsigned_of(sequences)};
  const cuuint64_t bytes[3] = {2 * unsigned_of(row_distance), 2 * unsigned_of(head_distance),
                               2 * unsigned_of(sequence_distance)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data), sizes, bytes, box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("fastssl: CUDA: tensor map: error " + std::to_string(static_cast<int>(result)));
  return map;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// The block's dynamic shared memory, where panels may begin: the address is a multiple of 1024, and known to the
// compiler.
__device__ __forceinline__ unsigned char* shared_panels() {
  extern __shared__ __align__(1024) unsigned char panels[];
  if (shared_address(panels) % 1024) __trap();
  return panels;
}

// A barrier whose phase ends when `arrivals` threads have arrived and all bytes that were announced have come. Phases
// count from 0; after the initialisation by one thread comes fence_barriers(), then a barrier of the block.
struct Barrier {
  uint64_t state;

  __device__ __forceinline__ void initialise(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  // Returns when the phase is over.
  __device__ __forceinline__ void wait(uint32_t phase) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@over bra done;\n"
        "bra again;\n"
        "done:\n"
        "}" ::"r"(shared_address(this)),
        "r"(phase & 1)
        : "memory");
  }
};
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One thread starts copying the box at these indices; what is outside the tensor becomes zero. The barrier gets the
// bytes of the whole box.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap& map, Barrier& barrier, int column, int row,
                                         int head, int sequence) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(&barrier)), "r"(column), "r"(row), "r"(head),
      "r"(sequence)
      : "memory");
}
// The same for bytes that lie side by side: addresses and count are multiples of 16.
__device__ __forceinline__ void copy_bytes(void* shared, const void* global, uint32_t bytes, Barrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}
__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

// The same number, and the compiler does not know that it is: what is made of it takes no registers from one round of a
// loop to the next.
__device__ __forceinline__ int made_anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// lane_of_warp(), read anew: what is made of it does not take registers through all that comes before.
__device__ __forceinline__ int lane_read_anew() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// A number in global memory that nobody writes meanwhile, read anew for the same reason.
__device__ __forceinline__ int64_t number_read_anew(const int64_t* number) {
  int64_t value;
  asm volatile("ld.global.nc.s64 %0, [%1];" : "=l"(value) : "l"(number));
  return value;
}

// Between what this thread wrote to shared memory and the products or copies that meet it, which come behind a barrier.
__device__ __forceinline__ void fence_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A number in global memory by which blocks take turns: it counts up. What was written before turns are passed, by this
// thread or by those that it met since, is there for who waited for this turn. A whole warp waits.
__device__ __forceinline__ void wait_for_turn(const uint32_t* turns, uint32_t turn) {
  uint32_t now;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turns) : "memory");
  while (now != turn);
  __syncwarp();
}
__device__ __forceinline__ void pass_turn(uint32_t* turns, uint32_t next) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turns), "r"(next) : "memory");
}
// Both, in the time that one of them takes if the turn has come: one fence serves both. Where nothing is to be passed,
// `passed` is null.
__device__ __forceinline__ void pass_and_wait_for_turn(uint32_t* passed, uint32_t next, const uint32_t* turns,
                                                       uint32_t turn) {
  uint32_t now;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turns) : "memory");
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  if (passed) asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(passed), "r"(next) : "memory");
  if (__any_sync(kWholeWarp, now != turn)) wait_for_turn(turns, turn);
}
// The next number, from 0 on, of those that threads take one by one.
__device__ __forceinline__ uint32_t take_number(uint32_t* taken) {
  return atomicAdd(taken, 1u);
}
// Adds to numbers in global memory without waiting for them.
__device__ __forceinline__ void add_in_memory(float4* numbers, const float (&values)[4]) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(numbers), "f"(values[0]),
               "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
}
// Numbers that another block has left in global memory.
__device__ __forceinline__ float4 load_from_others(const float4* numbers) {
  return __ldcg(numbers);
}

// Barriers 1 to 15 of the block, for `threads` of its threads, whole warps: some wait, others only arrive.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// A warpgroup takes or gives up registers; the count, a multiple of 8, is that of each thread from now on.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Products of a warpgroup. Before the first one since the registers of an operand were written: fence_products(). Their
// sums and their operands in registers belong to them until wait_for_products<n>(), behind which at most the n latest
// groups are still under way; take(sums) then keeps the compiler from reading them earlier.
__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroupsUnderWay>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsUnderWay) : "memory");
}
template <int kColumns>
__device__ __forceinline__ void take(Sums<1, kColumns>& c) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c.at[0][n][e])::"memory");
}

#define FASTSSL_REGISTERS_16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define FASTSSL_REGISTERS_32                                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define FASTSSL_REGISTERS_64                                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "  \
  "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FASTSSL_SUMS_4(n) "+f"(c.at[0][n][0]), "+f"(c.at[0][n][1]), "+f"(c.at[0][n][2]), "+f"(c.at[0][n][3])
#define FASTSSL_SUMS_16 FASTSSL_SUMS_4(0), FASTSSL_SUMS_4(1), FASTSSL_SUMS_4(2), FASTSSL_SUMS_4(3)
#define FASTSSL_SUMS_32(n)                                                                                       \
  FASTSSL_SUMS_4(n), FASTSSL_SUMS_4(n + 1), FASTSSL_SUMS_4(n + 2), FASTSSL_SUMS_4(n + 3), FASTSSL_SUMS_4(n + 4), \
      FASTSSL_SUMS_4(n + 5), FASTSSL_SUMS_4(n + 6), FASTSSL_SUMS_4(n + 7)
#define FASTSSL_SUMS_64 FASTSSL_SUMS_32(0), FASTSSL_SUMS_32(8)
#define FASTSSL_PRODUCT(columns, type) "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." #type "." #type " "

// Operand numbers: those behind the sums.
#define FASTSSL_MULTIPLY_REGISTERS(columns, type, registers, sums, a0, a1, a2, a3, b_, add_, by_rows_)          \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" FASTSSL_PRODUCT(columns, type) registers \
               ", {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ ", add, 1, 1, %" #by_rows_ ";\n}"            \
               : sums                                                                                           \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b.bits), "r"(static_cast<int>(add)),               \
                 "n"(kByRows ? 1 : 0))
#define FASTSSL_MULTIPLY_SHARED(columns, type, registers, sums, a_, b_, add_, by_columns_, by_rows_)            \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" FASTSSL_PRODUCT(columns, type) registers \
               ", %" #a_ ", %" #b_ ", add, 1, 1, %" #by_columns_ ", %" #by_rows_ ";\n}"                         \
               : sums                                                                                           \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(add)), "n"(kByColumns ? 1 : 0), "n"(kByRows ? 1 : 0))

// Starts c = A B, or c += A B, A of 64 x 16. Each warp has 16 rows of A and of c, as its fragments of m16n8k16 are; or
// A lies in shared memory, where a row is one of A or, `kByColumns`, a column. In memory, a row of `b` is a column of
// B, or, `kByRows`, a row of B.
template <class T, bool kByRows, int kColumns>
__device__ __forceinline__ void multiply_async(Sums<1, kColumns>& c, const uint4& a, SharedMatrix b, bool add) {
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 128);
  constexpr bool kHalf = std::is_same_v<T, Half>;
  if constexpr (kColumns == 32 && kHalf)
    FASTSSL_MULTIPLY_REGISTERS(32, f16, FASTSSL_REGISTERS_16, FASTSSL_SUMS_16, 16, 17, 18, 19, 20, 21, 22);
  else if constexpr (kColumns == 32)
    FASTSSL_MULTIPLY_REGISTERS(32, bf16, FASTSSL_REGISTERS_16, FASTSSL_SUMS_16, 16, 17, 18, 19, 20, 21, 22);
  else if constexpr (kColumns == 64 && kHalf)
    FASTSSL_MULTIPLY_REGISTERS(64, f16, FASTSSL_REGISTERS_32, FASTSSL_SUMS_32(0), 32, 33, 34, 35, 36, 37, 38);
  else if constexpr (kColumns == 64)
    FASTSSL_MULTIPLY_REGISTERS(64, bf16, FASTSSL_REGISTERS_32, FASTSSL_SUMS_32(0), 32, 33, 34, 35, 36, 37, 38);
  else if constexpr (kHalf)
    FASTSSL_MULTIPLY_REGISTERS(128, f16, FASTSSL_REGISTERS_64, FASTSSL_SUMS_64, 64, 65, 66, 67, 68, 69, 70);
  else
    FASTSSL_MULTIPLY_REGISTERS(128, bf16, FASTSSL_REGISTERS_64, FASTSSL_SUMS_64, 64, 65, 66, 67, 68, 69, 70);
}
template <class T, bool kByColumns, bool kByRows, int kColumns>
__device__ __forceinline__ void multiply_async(Sums<1, kColumns>& c, SharedMatrix a, SharedMatrix b, bool add) {
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 128);
  constexpr bool kHalf = std::is_same_v<T, Half>;
  if constexpr (kColumns == 32 && kHalf)
    FASTSSL_MULTIPLY_SHARED(32, f16, FASTSSL_REGISTERS_16, FASTSSL_SUMS_16, 16, 17, 18, 19, 20);
  else if constexpr (kColumns == 32)
    FASTSSL_MULTIPLY_SHARED(32, bf16, FASTSSL_REGISTERS_16, FASTSSL_SUMS_16, 16, 17, 18, 19, 20);
  else if constexpr (kColumns == 64 && kHalf)
    FASTSSL_MULTIPLY_SHARED(64, f16, FASTSSL_REGISTERS_32, FASTSSL_SUMS_32(0), 32, 33, 34, 35, 36);
  else if constexpr (kColumns == 64)
    FASTSSL_MULTIPLY_SHARED(64, bf16, FASTSSL_REGISTERS_32, FASTSSL_SUMS_32(0), 32, 33, 34, 35, 36);
  else if constexpr (kHalf)
    FASTSSL_MULTIPLY_SHARED(128, f16, FASTSSL_REGISTERS_64, FASTSSL_SUMS_64, 64, 65, 66, 67, 68);
  else
    FASTSSL_MULTIPLY_SHARED(128, bf16, FASTSSL_REGISTERS_64, FASTSSL_SUMS_64, 64, 65, 66, 67, 68);
}

#undef FASTSSL_REGISTERS_16
#undef FASTSSL_REGISTERS_32
#undef FASTSSL_REGISTERS_64
#undef FASTSSL_SUMS_4
#undef FASTSSL_SUMS_16
#undef FASTSSL_SUMS_32
#undef FASTSSL_SUMS_64
#undef FASTSSL_PRODUCT
#undef FASTSSL_MULTIPLY_REGISTERS
#undef FASTSSL_MULTIPLY_SHARED

}  // namespace fastssl::cuda
#endif
