// The attention kernels' arguments. The algorithm is described in fastssl/ops/attention/README.md.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dropout.h"

namespace fastssl {

namespace attention {

enum class Storage : int32_t { float32, bfloat16, float16 };

// Queries per tile, keys per tile: the scores of one tile and all that is multiplied with them stay in the L2 cache.
inline constexpr int64_t kQueryTile = 64;
inline constexpr int64_t kKeyTile = 128;
// Rows of every tile are padded to a multiple of this, the widest vector.
inline constexpr int64_t kPadding = 16;

// A tensor of rows: element (sequence, row, head, column), strides in elements, columns contiguous.
// Packed tensors have batch = 0, and rows count from the start of the tensor.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;

  int64_t offset(int64_t sequence, int64_t index, int64_t h) const {
    return sequence * batch + index * row + h * head;
  }
};

struct Arguments {
  Storage storage = Storage::float32;
  int64_t width = 0;          // D
  int64_t heads_per_key = 1;  // query heads that share a key head
  Rows q, k, v, out;          // `storage`
  Rows lse;                   // float, no columns
  Storage bias_storage = Storage::float32;
  Rows bias;                     // element (sequence, query, head, key); no data: no bias
  const float* alibi = nullptr;  // (H), or none
  int64_t window_left = 0, window_right = 0;
  float scale = 1.0f;
  Dropout dropout;
  // Backward only.
  Rows grad_out, grad_q, grad_k, grad_v;  // `storage`
  Rows grad_lse;                          // float, no columns; no data: zero
  Rows grad_bias;                         // float, as bias, added to; no data: not wanted
};

// What one call of a kernel computes: in the forward queries [query_begin, query_end) of one query head, in the
// backward all of one key head.
struct Item {
  int64_t sequence, head;
  int64_t q_row, num_queries;  // first row of the sequence and its length
  int64_t k_row, num_keys;
  int64_t query_begin, query_end;
};

inline int64_t padded(int64_t n) {
  return (n + kPadding - 1) / kPadding * kPadding;
}

// Floats of scratch memory that one worker needs; linear in the number of keys.
int64_t forward_scratch(int64_t width, int64_t num_keys);
int64_t backward_scratch(int64_t width, int64_t num_keys);

}  // namespace attention

// `next` is what the same worker will compute after this item, so that its rows can be fetched meanwhile; may be null.
FASTSSL_DECLARE_KERNEL(void, attention_forward, const attention::Arguments&, const attention::Item&,
                       const attention::Item* next, float* scratch)
FASTSSL_DECLARE_KERNEL(void, attention_backward, const attention::Arguments&, const attention::Item&,
                       const attention::Item* next, float* scratch)

}  // namespace fastssl
