// What the kernels of attention to a cache take (fastssl/ops/cached_attention/README.md).
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {
namespace cached {

inline constexpr int64_t kBlock = 128;  // keys between two corrections of the softmax
inline constexpr int64_t kChunk = 512;  // keys that are worth a unit of work; never depends on the number of threads

// A tensor of heads of new tokens: element (sequence, head, column), strides in elements, columns contiguous.
struct Heads {
  const float* data;
  int64_t batch, head;

  const float* at(int64_t sequence, int64_t h) const {
    return data + sequence * batch + h * head;
  }
};

// A cache: element (sequence, key head, slot, column), as above; a token's slot is its position modulo their number.
struct Cache {
  void* data;
  int64_t batch, head, slot;

  int64_t offset(int64_t sequence, int64_t h) const {
    return sequence * batch + h * head;
  }
};

struct Call {
  Heads q, k, v;
  Cache k_cache, v_cache;
  const float* cos;  // (sequences, width), with `sin`, or null
  const float* sin;
  float* out;       // (sequences, heads, width)
  float* partials;  // (units, heads_per_key, width + 2): sums of values, largest scores and sums of weights
  int64_t heads, key_heads, heads_per_key;
  int64_t width;
  int64_t slots;
  float scale;
  bool bfloat16;  // of the caches, else float32
};

// Positions [begin, end) of the keys of one key head of one sequence.
struct Unit {
  int64_t sequence, key_head;
  int64_t begin, end;
  int64_t position;  // of the new token
  bool alone;        // all keys that are visible, so that the result is final
};

static inline int64_t scratch_floats(const Call& call) {
  return call.heads_per_key * (2 * call.width + kBlock + 3);
}

}  // namespace cached

// Attends to the keys of unit `index`; writes the new token to the caches where it is one of them.
FASTSSL_DECLARE_KERNEL(void, cached_attention, const cached::Call&, const cached::Unit* units, int64_t index,
                       float* scratch)
// The result of a key head from the partial ones of units [begin, end).
FASTSSL_DECLARE_KERNEL(void, cached_attention_merge, const cached::Call&, const cached::Unit* units, int64_t begin,
                       int64_t end)

}  // namespace fastssl
