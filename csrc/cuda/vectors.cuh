// Elements in memory and in registers: a thread takes eight neighbours at a time, which are 16 bytes of 16-bit elements
// and one Philox call.
#pragma once

#include "cuda/platform.cuh"

namespace fastssl::cuda {

inline constexpr int kVector = 8;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// kVector elements as they lie in memory.
template <class T>
struct Packed {
  static constexpr int kWords = sizeof(T) * kVector / sizeof(uint4);
  uint4 words[kWords];
};

// True where 16-byte loads may start at every row of these pointers (null ones do not count).
template <class... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % sizeof(uint4) == 0) && ...);
}

template <class T>
__device__ __forceinline__ Packed<T> load_packed(const T* p) {
  Packed<T> packed;
#pragma unroll
  for (int i = 0; i < Packed<T>::kWords; ++i) packed.words[i] = words_at(p)[i];
  return packed;
}

template <class T>
__device__ __forceinline__ void store_packed(T* p, const Packed<T>& packed) {
#pragma unroll
  for (int i = 0; i < Packed<T>::kWords; ++i) words_at(p)[i] = packed.words[i];
}

__device__ __forceinline__ float2 widen(uint32_t pair, BFloat16) {
  return widen_bfloat16(pair);
}
__device__ __forceinline__ float2 widen(uint32_t pair, Half) {
  return widen_half(pair);
}
__device__ __forceinline__ uint32_t narrow(float low, float high, BFloat16) {
  return narrow_bfloat16(low, high);
}
__device__ __forceinline__ uint32_t narrow(float low, float high, Half) {
  return narrow_half(low, high);
}

template <class T>
__device__ __forceinline__ void widen(const Packed<T>& packed, float (&values)[kVector]) {
  const uint32_t pairs[4] = {packed.words[0].x, packed.words[0].y, packed.words[0].z, packed.words[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = widen(pairs[i], T{});
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ void widen(const Packed<float>& packed, float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    values[4 * i] = __uint_as_float(packed.words[i].x);
    values[4 * i + 1] = __uint_as_float(packed.words[i].y);
    values[4 * i + 2] = __uint_as_float(packed.words[i].z);
    values[4 * i + 3] = __uint_as_float(packed.words[i].w);
  }
}

template <class T>
__device__ __forceinline__ Packed<T> narrow(const float (&values)[kVector]) {
  Packed<T> packed;
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      packed.words[i] = make_uint4(__float_as_uint(values[4 * i]), __float_as_uint(values[4 * i + 1]),
                                   __float_as_uint(values[4 * i + 2]), __float_as_uint(values[4 * i + 3]));
  } else {
    packed.words[0] = make_uint4(narrow(values[0], values[1], T{}), narrow(values[2], values[3], T{}),
                                 narrow(values[4], values[5], T{}), narrow(values[6], values[7], T{}));
  }
  return packed;
}

// One element as float32, and back.
__device__ __forceinline__ float load_element(const float* p) {
  return *p;
}
template <class T>
__device__ __forceinline__ float load_element(const T* p) {
  return widen(static_cast<uint32_t>(p->bits), T{}).x;
}
__device__ __forceinline__ void store_element(float* p, float value) {
  *p = value;
}
template <class T>
__device__ __forceinline__ void store_element(T* p, float value) {
  p->bits = static_cast<uint16_t>(narrow(value, 0.0f, T{}));
}

// The first `count` elements of a vector of any alignment; the others are zero, or are left alone.
template <class T>
__device__ __forceinline__ void load_any(const T* p, int count, float (&values)[kVector]) {
  if (count == kVector && reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0) {
    widen(load_packed(p), values);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = i < count ? load_element(p + i) : 0.0f;
  }
}
template <class T>
__device__ __forceinline__ void store_any(T* p, int count, const float (&values)[kVector]) {
  if (count == kVector && reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0) {
    store_packed(p, narrow<T>(values));
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (i < count) store_element(p + i, values[i]);
  }
}

// The values as T holds them.
template <class T>
__device__ __forceinline__ void round_to(float (&values)[kVector]) {
  widen(narrow<T>(values), values);
}

}  // namespace fastssl::cuda
