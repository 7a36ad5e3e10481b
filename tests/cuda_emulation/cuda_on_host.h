// CUDA's language and instructions for a plain C++ compiler: the kernels of csrc run on a CPU, one thread after
// another.
//
// Every thread of a block is a fiber (cuda_on_host.cpp): it runs until it waits for others, then the next one does.
// What this shows is the logic: indices, masks, reductions, who waits for whom. It shows nothing of speed, of
// registers, or of what threads see of each other's writes without a barrier, except that the tests run threads in
// several orders.
//
// An instruction of a warp (a shuffle, and so on) is a meeting: each lane brings its operands, and the last one to come
// does the work for all. A new instruction needs a struct of operands and a function over those of all lanes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static  // one block runs at a time; where several do, they have dynamic memory alone

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

typedef void* cudaStream_t;

using std::isinf;
using std::isnan;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_host {

inline constexpr int kLanes = 32;

// When blocks run: one after another; as long as there is a multiprocessor for one more; or all at the same time.
enum class Start { apart, as_they_come, together };

// Runs the kernel for every thread of every block; throws std::runtime_error for what would hang or fault on a GPU.
void run(dim3 blocks, dim3 threads, size_t shared_bytes, Start start, const std::function<void()>& kernel);

// Ends the run with an error; for use inside kernels.
[[noreturn]] void fail(const char* what);

unsigned char* dynamic_shared();
size_t dynamic_shared_bytes();

// The block that runs, and of its threads the one that does; it sleeps until another one wakes it.
const void* this_block();
int thread_index();
void sleep();
void wake(int thread);

// Returns when the condition holds, which only another block may bring about; that one runs meanwhile.
void wait_until(const std::function<bool()>& condition);
void let_other_blocks_run();

// Functions to call when a block begins, with its number of threads, and when all of these have ended: an error or
// null.
void watch_blocks(void (*begin)(int threads), const char* (*end)());

// Waits for all threads of the block; returns how many of them brought a true `predicate`.
int meet_block(bool predicate);

// Waits for the lanes of `mask`, this one among them. The last to come calls resolve(operands of each lane, mask).
using Resolve = void (*)(void* const operands[kLanes], uint32_t mask);
void meet_lanes(uint32_t mask, void* operands, Resolve resolve);

// Copies that have not happened yet: they do when the thread waits for them, as late as CUDA allows.
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(int groups_under_way);

// A pointer that an instruction of 16 bytes would accept.
template <class T>
T* aligned(T* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) fail("misaligned address");
  return p;
}

template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
struct Shuffle {
  T value;
  int source;  // lane
  T result;
};

template <class T>
T shuffle(uint32_t mask, T value, int source) {
  Shuffle<T> operands{value, source, value};
  meet_lanes(mask, &operands, [](void* const all[kLanes], uint32_t mask) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto* mine = static_cast<Shuffle<T>*>(all[lane]);
      if (!(mask >> mine->source & 1)) fail("a shuffle reads a lane that does not take part");
      mine->result = static_cast<Shuffle<T>*>(all[mine->source])->value;
    }
  });
  return operands.result;
}

int lane_index();
uint4 load_matrices(const void* row, bool transposed);
uint32_t transpose_matrix(uint32_t word);
void multiply(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1, float (*widen)(uint16_t));
uint32_t ballot(uint32_t mask, bool predicate);

float bfloat16_to_float(uint16_t x);
uint16_t float_to_bfloat16(float x);
float half_to_float(uint16_t x);
uint16_t float_to_half(float x);

}  // namespace cuda_on_host

inline void __syncthreads() {
  cuda_on_host::meet_block(false);
}
inline int __syncthreads_or(int predicate) {
  return cuda_on_host::meet_block(predicate) > 0;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  cuda_on_host::ballot(mask, false);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return cuda_on_host::shuffle(mask, value, source % cuda_on_host::kLanes);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return cuda_on_host::shuffle(mask, value, cuda_on_host::lane_index() ^ bits);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance) {
  const int lane = cuda_on_host::lane_index(), source = lane + static_cast<int>(distance);
  return cuda_on_host::shuffle(mask, value, source < cuda_on_host::kLanes ? source : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance) {
  const int lane = cuda_on_host::lane_index(), source = lane - static_cast<int>(distance);
  return cuda_on_host::shuffle(mask, value, source >= 0 ? source : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  return cuda_on_host::ballot(mask, predicate);
}
inline int __any_sync(uint32_t mask, int predicate) {
  return cuda_on_host::ballot(mask, predicate) != 0;
}
inline int __all_sync(uint32_t mask, int predicate) {
  return cuda_on_host::ballot(mask, predicate) == mask;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline uint32_t __float_as_uint(float x) {
  return cuda_on_host::bits<uint32_t>(x);
}
inline float __uint_as_float(uint32_t x) {
  return cuda_on_host::bits<float>(x);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}

namespace fastssl::cuda {

// What the tests pretend to run on; see emulation.py.
DeviceLimits limits_of(int device);

template <class... Parameters>
int blocks_per_multiprocessor(void (*)(Parameters...), int, size_t) {
  return 2;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t,
            const std::type_identity_t<Parameters>&... arguments) {
  cuda_on_host::run(blocks, threads, shared_bytes, cuda_on_host::Start::apart, [&] { kernel(arguments...); });
}
template <class... Parameters>
void launch_as_they_come(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t,
                         const std::type_identity_t<Parameters>&... arguments) {
  cuda_on_host::run(blocks, threads, shared_bytes, cuda_on_host::Start::as_they_come, [&] { kernel(arguments...); });
}
template <class... Parameters>
void launch_together(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t,
                     const std::type_identity_t<Parameters>&... arguments) {
  cuda_on_host::run(blocks, threads, shared_bytes, cuda_on_host::Start::together, [&] { kernel(arguments...); });
}

inline unsigned char* dynamic_shared() {
  return cuda_on_host::dynamic_shared();
}
template <class T>
const uint4* words_at(const T* p) {
  return reinterpret_cast<const uint4*>(cuda_on_host::aligned(p));
}
template <class T>
uint4* words_at(T* p) {
  return reinterpret_cast<uint4*>(cuda_on_host::aligned(p));
}
inline void copy_async_16(void* shared, const void* global) {
  cuda_on_host::copy_later(cuda_on_host::aligned(shared), cuda_on_host::aligned(global), 16);
}
inline void copy_async_16_or_zero(void* shared, const void* global, bool inside) {
  alignas(16) static const unsigned char zeros[16] = {};
  copy_async_16(shared, inside ? global : cuda_on_host::aligned(global) ? zeros : nullptr);
}
inline void copy_async_commit() {
  cuda_on_host::commit_copies();
}
template <int kGroupsUnderWay>
void copy_async_wait() {
  cuda_on_host::wait_for_copies(kGroupsUnderWay);
}
template <bool kTransposed>
uint4 load_matrices(const void* shared) {
  return cuda_on_host::load_matrices(cuda_on_host::aligned(shared), kTransposed);
}
inline uint32_t transpose_matrix(uint32_t word) {
  return cuda_on_host::transpose_matrix(word);
}
inline void multiply_bfloat16(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1) {
  cuda_on_host::multiply(c, a, b_0, b_1, cuda_on_host::bfloat16_to_float);
}
inline void multiply_half(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1) {
  cuda_on_host::multiply(c, a, b_0, b_1, cuda_on_host::half_to_float);
}
inline float exp2_approx(float x) {
  return std::exp2(x);
}
inline float2 widen_bfloat16(uint32_t pair) {
  return {cuda_on_host::bfloat16_to_float(static_cast<uint16_t>(pair)),
          cuda_on_host::bfloat16_to_float(static_cast<uint16_t>(pair >> 16))};
}
inline float2 widen_half(uint32_t pair) {
  return {cuda_on_host::half_to_float(static_cast<uint16_t>(pair)),
          cuda_on_host::half_to_float(static_cast<uint16_t>(pair >> 16))};
}
inline uint32_t narrow_bfloat16(float low, float high) {
  return cuda_on_host::float_to_bfloat16(low) | static_cast<uint32_t>(cuda_on_host::float_to_bfloat16(high)) << 16;
}
inline uint32_t narrow_half(float low, float high) {
  return cuda_on_host::float_to_half(low) | static_cast<uint32_t>(cuda_on_host::float_to_half(high)) << 16;
}

}  // namespace fastssl::cuda
