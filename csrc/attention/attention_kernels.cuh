// What the attention kernels for the GPU share: arguments, where a block works, scores and masks
// (fastssl/ops/attention/README.md).
#pragma once

#include "cuda/dropout.cuh"
#include "cuda/matrices.cuh"

namespace fastssl::cuda {

inline constexpr int kAttentionWarps = 4, kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Element (sequence, row, head, column), strides in elements; packed tensors have sequence = 0.
struct AttentionRows {
  void* data = nullptr;
  int64_t sequence = 0, row = 0, head = 0;
};

// The rows of each sequence: offsets of packed ones, or one length for all.
struct SequenceRows {
  const int32_t* offsets = nullptr;  // (sequences + 1)
  int length = 0;
};

struct AttentionArguments {
  AttentionRows q, k, v, out;                    // 16 bits an element
  float* lse;                                    // natural logarithms; a row a (sequence and) head
  int64_t statistics_sequence, statistics_head;  // strides of these
  SequenceRows queries, keys;
  int sequences, width, heads, heads_per_key;
  bool aligned;        // every row of every tensor begins at a 16-byte address and has whole vectors
  const float* alibi;  // (heads), or null
  int window_left, window_right;
  float scale;
  Dropout dropout;
};

// The sequence that a block works on, and where.
struct Place {
  int sequence;
  int begin;          // first row of its tile, in the sequence
  int queries, keys;  // lengths
  int q_row, k_row;   // first rows of the sequence
};

// Sequence b of packed ones has slots from offsets[b] / kTile + b on, which are enough for its tiles, so that neither
// the host nor a kernel before this one needs to count them. Some slots are empty.
template <int kTile>
__device__ __forceinline__ unsigned first_slot(const SequenceRows& tiled, int sequence) {
  if (tiled.offsets) return static_cast<unsigned>(tiled.offsets[sequence] / kTile + sequence);
  return static_cast<unsigned>(sequence) * static_cast<unsigned>((tiled.length + kTile - 1) / kTile);
}

// In an empty slot, `begin` is behind the end.
template <int kTile>
__device__ __forceinline__ Place place_of(const AttentionArguments& a, const SequenceRows& tiled, unsigned slot) {
  Place place{};
  if (!tiled.offsets) {
    const unsigned tiles = first_slot<kTile>(tiled, 1);
    place.sequence = static_cast<int>(slot / tiles);
    place.begin = static_cast<int>(slot % tiles) * kTile;
    place.queries = a.queries.length;
    place.keys = a.keys.length;
    return place;
  }
  int low = 0;
  for (int high = a.sequences; high - low > 1;) {
    const int middle = low + (high - low) / 2;
    if (first_slot<kTile>(tiled, middle) <= slot)
      low = middle;
    else
      high = middle;
  }
  place.sequence = low;
  place.begin = static_cast<int>(slot - first_slot<kTile>(tiled, low)) * kTile;
  place.q_row = a.queries.offsets[low];
  place.k_row = a.keys.offsets[low];
  place.queries = a.queries.offsets[low + 1] - a.queries.offsets[low];
  place.keys = a.keys.offsets[low + 1] - a.keys.offsets[low];
  return place;
}

// Rows of one head of a sequence from `begin` on; sequence_row is the sequence's first, `count` its length.
template <class T>
__device__ __forceinline__ RowsInMemory<T> rows_in(const AttentionArguments& a, const AttentionRows& tensor,
                                                   const Place& place, int64_t sequence_row, int head, int begin,
                                                   int count) {
  T* first = static_cast<T*>(tensor.data) + place.sequence * tensor.sequence + (sequence_row + begin) * tensor.row +
             head * tensor.head;
  return {first, tensor.row, count - begin, a.width, a.aligned};
}

__device__ __forceinline__ int64_t statistics_of(const AttentionArguments& a, const Place& place, int head) {
  return place.sequence * a.statistics_sequence + head * a.statistics_head + place.q_row;
}

// Turns products of queries and keys into scores in units of ln 2, -infinity where hidden.
struct ScoreRules {
  float scale, slope;
  int window_left, window_right, keys, shift;  // query i stands at key position i + shift

  __device__ ScoreRules(const AttentionArguments& a, const Place& place, int head)
      : scale(a.scale * kLog2E),
        slope(a.alibi ? a.alibi[head] * kLog2E : 0.0f),
        window_left(a.window_left),
        window_right(a.window_right),
        keys(place.keys),
        shift(place.keys - place.queries) {}

  __device__ __forceinline__ float score(float product, int query, int key) const {
    const int distance = key - query - shift;
    const float score = product * scale - slope * fabsf(static_cast<float>(distance));
    return key < keys && distance >= -window_left && distance <= window_right ? score : -INFINITY;
  }
  // Whether each of these queries sees each of these keys, all of them there, and a score is a product times scale.
  __device__ __forceinline__ bool only_scale(int query, int num_queries, int key, int num_keys) const {
    return slope == 0.0f && key + num_keys <= keys && key - (query + num_queries - 1) - shift >= -window_left &&
           key + num_keys - 1 - query - shift <= window_right;
  }
  // Whether none of these queries, from one that may be behind the last, sees any of these keys.
  __device__ __forceinline__ bool hides_all(int query, int num_queries, int key, int num_keys) const {
    return key >= keys || query >= keys - shift || key + num_keys - 1 - query - shift < -window_left ||
           key - (query + num_queries - 1) - shift > window_right;
  }
};

struct Range {
  int begin, end;
};

// [low, high) within [0, count), its begin rounded down to a whole tile.
__device__ __forceinline__ Range tiles_between(int64_t low, int64_t high, int count, int tile) {
  const int begin = low < 0 ? 0 : static_cast<int>(low < count ? low : count);
  const int end = high < 0 ? 0 : static_cast<int>(high < count ? high : count);
  return {begin / tile * tile, end};
}

// The keys that some query of [begin, begin + count) sees.
__device__ __forceinline__ Range keys_seen(const ScoreRules& rules, const Place& place, int count, int tile) {
  const int64_t first = int64_t{place.begin} + rules.shift;
  const int rows = place.queries - place.begin < count ? place.queries - place.begin : count;
  return tiles_between(first - rules.window_left, first + rows + rules.window_right, place.keys, tile);
}

// Zeroes those of a pair that the halves of a word drop, and scales the others.
__device__ __forceinline__ void drop_pair(uint32_t word, uint32_t threshold, float scale, float& low, float& high) {
  low = (word & 0xffffu) >= threshold ? low * scale : 0.0f;
  high = (word >> 16) >= threshold ? high * scale : 0.0f;
}

// body(word, low, high) for the pairs of neighbouring keys of a warp's scores, queries as rows. `query`, `key`: those
// of row 0 and column 0. Each lane of four makes one of the calls that the four need.
template <int kRowTiles, int kKeys, class Body>
__device__ __forceinline__ void for_dropout_words(PhiloxKey seed, int query, int key, int head, int sequence,
                                                  Body body) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 4) {
        const uint4 counter = make_uint4(static_cast<uint32_t>(key / 8 + n + lane % 4),
                                         static_cast<uint32_t>(query + 16 * r + 8 * half + lane / 4),
                                         static_cast<uint32_t>(head), static_cast<uint32_t>(sequence));
        const uint4 words = transpose_in_quad(philox(counter, seed));
        body(words.x, r, n, 2 * half);
        body(words.y, r, n + 1, 2 * half);
        body(words.z, r, n + 2, 2 * half);
        body(words.w, r, n + 3, 2 * half);
      }
}

}  // namespace fastssl::cuda
