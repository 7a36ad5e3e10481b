// Attention of one new token a sequence to the keys and values of a cache, each of which is read once for all heads
// that share it.
#include "cached_attention/cached_attention.h"
#include "common/row_products.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

using cached::Call;
using cached::kBlock;
using cached::Unit;

constexpr float kInfinity = __builtin_inff();
constexpr int kHeads = kProductVectors / 2;  // whose values are added at a time
constexpr int64_t kAhead = 16;               // keys between those that are read and those that the memory is asked for

// Asks the memory for a row.
template <class Element>
FASTSSL_INLINE void want(const Element* row, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(Element);
  for (int64_t j = 0; j < width; j += kLine) __builtin_prefetch(row + j, 0, 3);
}

// out = factor * x, turned by the angles of its position where there are any: both halves of x form the pairs.
void rotate(const Call& a, int64_t sequence, const float* x, float factor, float* out) {
  if (!a.cos) {
    for_each_vector(a.width, [&](int64_t j, auto part) { store(out + j, load(x + j, part) * factor, part); });
    return;
  }
  const int64_t half = a.width / 2;
  const float *cos = a.cos + sequence * a.width, *sin = a.sin + sequence * a.width;
  for_each_vector(half, [&](int64_t j, auto part) {
    const VecF low = load(x + j, part) * factor, high = load(x + half + j, part) * factor;
    store(out + j, low * load(cos + j, part) - high * load(sin + j, part), part);
    store(out + half + j, high * load(cos + half + j, part) + low * load(sin + half + j, part), part);
  });
}

template <class Element>
void append(const Call& a, const Unit& unit, float* row) {
  const int64_t slot = unit.position % a.slots;
  const auto write = [&](const cached::Cache& cache) {
    Element* to = static_cast<Element*>(cache.data) + cache.offset(unit.sequence, unit.key_head) + slot * cache.slot;
    for_each_vector(a.width, [&](int64_t j, auto part) { store(to + j, load(row + j, part), part); });
  };
  rotate(a, unit.sequence, a.k.at(unit.sequence, unit.key_head), 1.0f, row);
  write(a.k_cache);
  std::memcpy(row, a.v.at(unit.sequence, unit.key_head), sizeof(float) * static_cast<uint64_t>(a.width));
  write(a.v_cache);
}

// What a unit has gathered of its heads.
struct State {
  float* queries;  // (heads_per_key, width), scaled
  float* values;   // (heads_per_key, width): weighted sums
  float* scores;   // (heads_per_key, kBlock), then the weights
  float* largest;  // (heads_per_key)
  float* weights;  // (heads_per_key): their sums
};

// Keys that will be read next.
template <class Element>
struct Wanted {
  const Element* keys;
  int64_t count;
};

// values[h] = correction[h] values[h] + the sum of weight[h][j] rows[j], kVectors vectors of some heads at a time.
template <int kHeads, int kVectors, class Element, class Part>
FASTSSL_INLINE void add_values(const Call& a, const State& s, const float* corrections, const Element* rows,
                               int64_t count, int64_t head, int64_t column, const Wanted<Element>& wanted, Part part) {
  VecF sum[kHeads][kVectors];
  float* values = s.values + head * a.width + column;
  const float* weights = s.scores + head * kBlock;
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
      sum[h][i] = load(values + h * a.width + i * kLanes, part) * corrections[head + h];
  }
  rows += column;
  const int64_t num_wanted = head + column == 0 ? wanted.count : 0;
  for (int64_t j = 0; j < count; ++j, rows += a.v_cache.slot) {
    if (j < num_wanted) want(wanted.keys + j * a.k_cache.slot, a.width);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const VecF value = load(rows + i * kLanes, part);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) sum[h][i] += value * weights[h * kBlock + j];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) store(values + h * a.width + i * kLanes, sum[h][i], part);
  }
}

template <int kHeads, class Element>
FASTSSL_INLINE void add_values_of(const Call& a, const State& s, const float* corrections, const Element* rows,
                                  int64_t count, int64_t head, const Wanted<Element>& wanted) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= a.width; column += 4 * kLanes)
    add_values<kHeads, 4>(a, s, corrections, rows, count, head, column, wanted, Whole{});
  for (; column + kLanes <= a.width; column += kLanes)
    add_values<kHeads, 1>(a, s, corrections, rows, count, head, column, wanted, Whole{});
  if (column < a.width)
    add_values<kHeads, 1>(a, s, corrections, rows, count, head, column, wanted,
                          Part{static_cast<int>(a.width - column)});
}

// The weights of a head's block from its scores; returns the factor that makes up for a larger largest score.
float weigh(const State& s, int64_t head, int64_t count) {
  float* scores = s.scores + head * kBlock;
  const float before = s.largest[head];
  const float largest =
      max_over_row(count, [&](int64_t j, auto part) { return pad(load(scores + j, part), -kInfinity, part); });
  const float reference = largest > before ? largest : before;
  const float sum = sum_over_row(count, [&](int64_t j, auto part) {
    const VecF weight = pad(exp(load(scores + j, part) - reference), 0.0f, part);
    store(scores + j, weight, part);
    return weight;
  });
  const float correction = exp(broadcast(before - reference))[0];
  s.largest[head] = reference;
  s.weights[head] = s.weights[head] * correction + sum;
  return correction;
}

// Adds keys in `count` neighbouring slots, behind which so many `more` will be added. The values are asked for while
// the keys are multiplied, and the next keys while the values are added, so that the memory is never idle.
template <class Element>
void add_block(const Call& a, const Unit& unit, const State& s, int64_t slot, int64_t count, int64_t more,
               float* corrections) {
  const Element* keys = static_cast<const Element*>(a.k_cache.data) + a.k_cache.offset(unit.sequence, unit.key_head) +
                        slot * a.k_cache.slot;
  const Element* values = static_cast<const Element*>(a.v_cache.data) + a.v_cache.offset(unit.sequence, unit.key_head) +
                          slot * a.v_cache.slot;
  for (int64_t j = 0; j < count; j += kProductRows) {
    const int64_t rows = count - j < kProductRows ? count - j : kProductRows;
    for (int64_t r = 0; r < rows; ++r) want(values + (j + r) * a.v_cache.slot, a.width);
    multiply_rows(RowProducts<Element>{.rows = keys + j * a.k_cache.slot,
                                       .row_stride = a.k_cache.slot,
                                       .vectors = s.queries,
                                       .vector_stride = a.width,
                                       .width = a.width,
                                       .out = s.scores + j,
                                       .out_stride = kBlock,
                                       .ahead = j + kAhead < count ? kAhead * a.k_cache.slot : 0},
                  rows, a.heads_per_key);
  }
  for (int64_t h = 0; h < a.heads_per_key; ++h) corrections[h] = weigh(s, h, count);
  const Wanted<Element> wanted{keys + count * a.k_cache.slot, more < count ? more : count};
  int64_t head = 0;
  for (; head + kHeads <= a.heads_per_key; head += kHeads)
    add_values_of<kHeads>(a, s, corrections, values, count, head, wanted);
  for (; head < a.heads_per_key; ++head) add_values_of<1>(a, s, corrections, values, count, head, wanted);
}

void finish(const Call& a, const Unit& unit, int64_t index, const State& s) {
  const int64_t heads = a.heads_per_key, width = a.width;
  if (!unit.alone) {
    float* partial = a.partials + index * heads * (width + 2);
    std::memcpy(partial, s.values, sizeof(float) * static_cast<uint64_t>(heads * width));
    std::memcpy(partial + heads * width, s.largest, sizeof(float) * static_cast<uint64_t>(heads));
    std::memcpy(partial + heads * (width + 1), s.weights, sizeof(float) * static_cast<uint64_t>(heads));
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    float* out = a.out + (unit.sequence * a.heads + unit.key_head * heads + h) * width;
    const float factor = 1.0f / s.weights[h];
    for_each_vector(width,
                    [&](int64_t j, auto part) { store(out + j, load(s.values + h * width + j, part) * factor, part); });
  }
}

template <class Element>
void run(const Call& a, const Unit& unit, int64_t index, float* scratch) {
  const int64_t heads = a.heads_per_key;
  State s;
  s.queries = scratch;
  s.values = s.queries + heads * a.width;
  s.scores = s.values + heads * a.width;
  s.largest = s.scores + heads * kBlock;
  s.weights = s.largest + heads;
  float* corrections = s.weights + heads;
  if (unit.end > unit.position) append<Element>(a, unit, s.queries);
  for (int64_t h = 0; h < heads; ++h) {
    rotate(a, unit.sequence, a.q.at(unit.sequence, unit.key_head * heads + h), a.scale, s.queries + h * a.width);
    s.largest[h] = -kInfinity;
    s.weights[h] = 0.0f;
  }
  std::memset(s.values, 0, sizeof(float) * static_cast<uint64_t>(heads * a.width));
  for (int64_t position = unit.begin; position < unit.end;) {
    const int64_t slot = position % a.slots;
    int64_t count = unit.end - position < kBlock ? unit.end - position : kBlock;
    count = count < a.slots - slot ? count : a.slots - slot;
    const int64_t left = unit.end - position - count, behind = a.slots - slot - count;  // in the unit, in the ring
    add_block<Element>(a, unit, s, slot, count, left < behind ? left : behind, corrections);
    position += count;
  }
  finish(a, unit, index, s);
}

}  // namespace

void cached_attention(const Call& a, const Unit* units, int64_t index, float* scratch) {
  return a.bfloat16 ? run<BFloat16>(a, units[index], index, scratch) : run<float>(a, units[index], index, scratch);
}

void cached_attention_merge(const Call& a, const Unit* units, int64_t begin, int64_t end) {
  const int64_t heads = a.heads_per_key, width = a.width, size = heads * (width + 2);
  const Unit& unit = units[begin];
  for (int64_t h = 0; h < heads; ++h) {
    const float* first = a.partials + begin * size;
    float largest = -kInfinity, weights = 0.0f;
    for (int64_t i = 0; i < end - begin; ++i) {
      const float other = first[i * size + heads * width + h];
      largest = other > largest ? other : largest;
    }
    float* out = a.out + (unit.sequence * a.heads + unit.key_head * heads + h) * width;
    std::memset(out, 0, sizeof(float) * static_cast<uint64_t>(width));
    for (int64_t i = 0; i < end - begin; ++i) {
      const float* partial = first + i * size;
      const float factor = exp(broadcast(partial[heads * width + h] - largest))[0];
      weights += factor * partial[heads * (width + 1) + h];
      for_each_vector(width, [&](int64_t j, auto part) {
        store(out + j, load(out + j, part) + load(partial + h * width + j, part) * factor, part);
      });
    }
    const float factor = 1.0f / weights;
    for_each_vector(width, [&](int64_t j, auto part) { store(out + j, load(out + j, part) * factor, part); });
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
