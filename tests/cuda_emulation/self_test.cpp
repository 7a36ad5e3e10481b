// Kernels that try the emulation itself: what works on a GPU works, and what does not is found.
#include <stdexcept>
#include <string>

#include "cuda/dropout.cuh"
#include "cuda/reductions.cuh"

namespace fastssl::cuda {
namespace {

__device__ void expect(bool condition) {
  if (!condition) cuda_on_host::fail("wrong result");
}

__global__ void conversions() {
  for (uint32_t bits = threadIdx.x; bits < 65536; bits += blockDim.x) {
    const float half = widen_half(bits).x, bfloat16 = widen_bfloat16(bits << 16).y;
    expect(std::isnan(half) ? std::isnan(widen_half(narrow_half(half, 0.0f)).x) : narrow_half(half, 0.0f) == bits);
    expect(std::isnan(bfloat16) || narrow_bfloat16(0.0f, bfloat16) >> 16 == bits);
  }
  expect(narrow_bfloat16(1.00390625f, 1.01171875f) == (0x3f80u | 0x3f82u << 16));  // ties to even
  expect(narrow_half(2049.0f, 2051.0f) == (0x6800u | 0x6802u << 16));
  expect(narrow_half(65519.0f, 65520.0f) == (0x7bffu | 0x7c00u << 16));
  expect(narrow_half(2.98023224e-8f, 5.9604645e-8f) == (0u | 1u << 16));
  expect(narrow_half(-1.0f, 0.333251953f) == (0xbc00u | 0x3555u << 16));
}

__global__ void shuffles() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  expect(__shfl_xor_sync(kWholeWarp, lane, 5) == (lane ^ 5));
  expect(__shfl_sync(kWholeWarp, lane + 100 * warp, 7) == 7 + 100 * warp);
  expect(__shfl_down_sync(kWholeWarp, lane, 3) == (lane < 29 ? lane + 3 : lane));
  expect(__shfl_up_sync(kWholeWarp, lane, 3) == (lane >= 3 ? lane - 3 : lane));
  expect(__ballot_sync(kWholeWarp, lane % 2) == 0xaaaaaaaau);
  expect(reduce_warp(static_cast<float>(lane), [](float a, float b) { return a + b; }) == 496.0f);
  const uint32_t quad = 0xfu << (lane / 4 * 4);  // parts of a warp by themselves
  expect(__shfl_xor_sync(quad, lane, 3) == (lane ^ 3));
  expect(__syncthreads_or(threadIdx.x == 40) && !__syncthreads_or(0));
}

__global__ void asynchronous_copies(const uint32_t* source) {
  auto* shared = reinterpret_cast<uint4*>(dynamic_shared()) + 2 * threadIdx.x;
  copy_async_16(shared, source);
  copy_async_commit();
  copy_async_16(shared + 1, source + 4);
  copy_async_commit();
  expect(shared[0].x != source[0]);  // as late as CUDA allows
  copy_async_wait<1>();
  expect(shared[0].x == source[0] && shared[1].x != source[4]);
  copy_async_wait<0>();
  expect(shared[1].w == source[7]);
}

__global__ void barrier_that_some_miss() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void shuffle_that_some_miss() {
  if (threadIdx.x != 3) __shfl_xor_sync(kWholeWarp, 1, 1);
}
__global__ void shuffle_from_outside_its_mask() {
  if (threadIdx.x < 4) __shfl_sync(0xfu, 1, 9);
}
__global__ void different_instructions() {
  if (threadIdx.x % 2)
    __shfl_xor_sync(kWholeWarp, 1, 1);
  else
    __ballot_sync(kWholeWarp, 1);
}
__global__ void write_behind_shared_memory() {
  dynamic_shared()[64 + threadIdx.x] = 1;
}
__global__ void misaligned_copy(const uint32_t* source) {
  copy_async_16(dynamic_shared(), source + 1);
}
__global__ void misaligned_vector(const uint32_t* source) {
  load_packed(reinterpret_cast<const float*>(source + 1));
}
// Right in one order of the threads only: the barrier between the write and the read is missing.
__global__ void race() {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  shared[threadIdx.x] = threadIdx.x;
  if (threadIdx.x > 0) expect(shared[threadIdx.x - 1] == threadIdx.x - 1);
}

void run_test(const std::string& name) {
  alignas(16) static uint32_t source[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const dim3 one(1), threads(64);
  if (name == "conversions") return launch(conversions, one, threads, 0, nullptr);
  if (name == "shuffles") return launch(shuffles, dim3(3, 2), threads, 0, nullptr);
  if (name == "copies") return launch(asynchronous_copies, one, threads, 64 * 32, nullptr, source);
  if (name == "missed barrier") return launch(barrier_that_some_miss, one, threads, 0, nullptr);
  if (name == "missed shuffle") return launch(shuffle_that_some_miss, one, threads, 0, nullptr);
  if (name == "outside the mask") return launch(shuffle_from_outside_its_mask, one, threads, 0, nullptr);
  if (name == "different instructions") return launch(different_instructions, one, threads, 0, nullptr);
  if (name == "behind shared memory") return launch(write_behind_shared_memory, one, threads, 64, nullptr);
  if (name == "misaligned copy") return launch(misaligned_copy, one, dim3(1), 64, nullptr, source);
  if (name == "misaligned vector") return launch(misaligned_vector, one, dim3(1), 64, nullptr, source);
  if (name == "too much shared memory") return launch(shuffles, one, threads, 1 << 20, nullptr);
  if (name == "race") return launch(race, one, threads, 256, nullptr);
  throw std::runtime_error("no such test");
}

}  // namespace
}  // namespace fastssl::cuda

extern "C" __attribute__((visibility("default"))) const char* self_test(const char* name) {
  static std::string error;
  error.clear();
  try {
    fastssl::cuda::run_test(name);
  } catch (const std::runtime_error& found) {
    error = found.what();
  }
  return error.c_str();
}

extern "C" __attribute__((visibility("default"))) void philox_words(const uint32_t* counter, const int64_t* seed,
                                                                    uint32_t* words) {
  const uint4 c = make_uint4(counter[0], counter[1], counter[2], counter[3]);
  const uint4 w = fastssl::cuda::philox(c, fastssl::cuda::philox_key({1, 1.0f, seed}));
  words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
}
