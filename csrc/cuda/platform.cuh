// What the kernels take from CUDA beyond its language: launches, instructions without a C++ spelling, limits.
//
// nvcc reads the definitions below. A plain C++ compiler, in the tests, reads tests/cuda_emulation/cuda_on_host.h
// instead, which has a twin of each name, so that the very same kernels run where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace fastssl::cuda {

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;           // what a block may ask for
  int shared_bytes_per_multiprocessor;  // what its blocks share
};

}  // namespace fastssl::cuda

#ifndef __CUDACC__
#include "cuda_on_host.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace fastssl::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("fastssl: CUDA: ") + cudaGetErrorString(error));
}

inline DeviceLimits limits_of(int device) {
  DeviceLimits limits;
  check(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaDeviceGetAttribute(&limits.shared_bytes_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                               device));
  return limits;
}

// How many blocks of this kernel one multiprocessor holds at a time; at least one.
template <class... Parameters>
int blocks_per_multiprocessor(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return blocks > 0 ? blocks : 1;
}

template <class... Parameters>
void launch_as(bool together, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
               cudaStream_t stream, const std::type_identity_t<Parameters>&... arguments) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
  constexpr size_t kWithoutAsking = 32 * 1024;  // of 48 KiB, which the arrays that a kernel declares take from too
  if (shared_bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = together ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}
// Starts a kernel; a grid without blocks starts nothing.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream,
            const std::type_identity_t<Parameters>&... arguments) {
  launch_as(false, kernel, blocks, threads, shared_bytes, stream, arguments...);
}
// The same for blocks that take numbers: one may wait for who took a lower one, whether or not others run already.
template <class... Parameters>
void launch_as_they_come(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
                         cudaStream_t stream, const std::type_identity_t<Parameters>&... arguments) {
  launch_as(false, kernel, blocks, threads, shared_bytes, stream, arguments...);
}
// The same, and all blocks run at the same time, so that they may wait for each other; more than do is an error.
template <class... Parameters>
void launch_together(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream,
                     const std::type_identity_t<Parameters>&... arguments) {
  launch_as(true, kernel, blocks, threads, shared_bytes, stream, arguments...);
}

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// The 16-byte words at an address that is a multiple of 16.
template <class T>
__device__ __forceinline__ const uint4* words_at(const T* p) {
  return reinterpret_cast<const uint4*>(p);
}
template <class T>
__device__ __forceinline__ uint4* words_at(T* p) {
  return reinterpret_cast<uint4*>(p);
}

// 16 bytes from global to shared memory, both aligned, without a register in between; by way of the first-level cache,
// where the other half of a sector waits for the next copy. The thread that asked may read them after
// copy_async_wait<n>() has left at most its n latest groups under way; others, after a barrier behind that.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}
// The same; without `inside`, zeros, and `global` is not read.
__device__ __forceinline__ void copy_async_16_or_zero(void* shared, const void* global, bool inside) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(inside ? 16 : 0)
      : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroupsUnderWay>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsUnderWay) : "memory");
}

// Matrices of 8 x 8 16-bit elements, the first of a pair in the low half of a word. As a fragment, lane i holds of a
// matrix the elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4.

// Four matrices from shared memory: lane i gives the 16-byte aligned address of row i % 8 of matrix i / 8, and gets a
// word of each, of its transpose on request.
template <bool kTransposed>
__device__ __forceinline__ uint4 load_matrices(const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  uint4 words;
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(address)
                 : "memory");
  return words;
}

// The transpose of a matrix that lies in the registers of a warp.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// c += A B in float32. A is 16 x 16, its matrices in the order (0, 0), (1, 0), (0, 1), (1, 1); b_0 and b_1 are the
// fragments of the transposes of the upper and the lower half of B, 16 x 8. Of C, 16 x 8, lane i holds elements
// 2 (i % 4) and the next of row i / 4, then of row i / 4 + 8.
__device__ __forceinline__ void multiply_bfloat16(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_0), "r"(b_1));
}
__device__ __forceinline__ void multiply_half(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_0), "r"(b_1));
}

// 2^x within two units in the last place; denormal results become 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two 16-bit numbers in a word, the first in its low half. Narrowing rounds to nearest, ties to even.
__device__ __forceinline__ float2 widen_bfloat16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ float2 widen_half(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ __forceinline__ uint32_t narrow_bfloat16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t narrow_half(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace fastssl::cuda
#endif
