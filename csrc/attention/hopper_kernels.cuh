// What attention's kernels for compute capability 9.0 share: arguments, and how blocks that stay find their work
// (fastssl/ops/attention/README.md).
#pragma once

#include "attention/attention_backward_kernels.cuh"
#include "cuda/warpgroups.cuh"

namespace fastssl::cuda {

// The work of a kernel: `units` groups of tiles of one side's rows, for each of `pairs` of a head and, in dense input,
// a sequence. Only the first pairs_at_once are worked on, then the next, so that what their units share stays in the L2
// cache. Items are units of pairs.
struct Schedule {
  int units, pairs, pairs_at_once, items;
};

// The side whose rows are divided, and how many, whole tiles, make a unit.
struct Units {
  SequenceRows side;
  int rows;
};

struct Item {
  int unit, pair;
};

__device__ __forceinline__ Item item_of(const Schedule& schedule, int index, bool late_first) {
  const int group = index / (schedule.units * schedule.pairs_at_once);
  const int first = group * schedule.pairs_at_once, rest = index - first * schedule.units;
  const int left = schedule.pairs - first, pairs = left < schedule.pairs_at_once ? left : schedule.pairs_at_once;
  const int unit = rest / pairs;
  return {late_first ? schedule.units - 1 - unit : unit, first + rest % pairs};
}

// As the other place_of, for units of any number of rows, of `heads` heads.
__device__ __forceinline__ Place place_of(const AttentionArguments& a, const Units& divided, const Item& item,
                                          int heads, int& head) {
  Place place{};
  if (!divided.side.offsets) {
    place.sequence = item.pair / heads;
    head = item.pair % heads;
    place.begin = item.unit * divided.rows;
    place.queries = a.queries.length;
    place.keys = a.keys.length;
    return place;
  }
  head = item.pair;
  const auto first_unit = [&](int sequence) { return divided.side.offsets[sequence] / divided.rows + sequence; };
  int low = 0;
  for (int high = a.sequences; high - low > 1;) {
    const int middle = low + (high - low) / 2;
    if (first_unit(middle) <= item.unit)
      low = middle;
    else
      high = middle;
  }
  place.sequence = low;
  place.begin = (item.unit - first_unit(low)) * divided.rows;
  place.q_row = a.queries.offsets[low];
  place.k_row = a.keys.offsets[low];
  place.queries = a.queries.offsets[low + 1] - a.queries.offsets[low];
  place.keys = a.keys.offsets[low + 1] - a.keys.offsets[low];
  return place;
}

// Where packed rows of a sequence are in a tensor map, whose sequences those of dense input are.
__device__ __forceinline__ int sequence_in_map(const SequenceRows& side, const Place& place) {
  return side.offsets ? 0 : place.sequence;
}

// The rows of the other side that a tile of `count` queries, or of keys, has to do with, whole tiles of `passing`.
// Under a causal mask late queries see more keys, and early keys are seen by more queries: they go first.
struct KeysOfQueries {
  static constexpr bool kLateFirst = true;
  static __device__ __forceinline__ int rows(const Place& place) {
    return place.queries;
  }
  static __device__ __forceinline__ Range seen(const ScoreRules& rules, const Place& place, int count, int passing) {
    return keys_seen(rules, place, count, passing);
  }
};
struct QueriesOfKeys {
  static constexpr bool kLateFirst = false;
  static __device__ __forceinline__ int rows(const Place& place) {
    return place.keys;
  }
  static __device__ __forceinline__ Range seen(const ScoreRules& rules, const Place& place, int count, int passing) {
    return queries_seeing(rules, place, count, passing);
  }
};

// An item tile by tile, for those who copy as for those who multiply. By each tile of kTile rows pass tiles of kPassing
// rows of the other side, once for each of `rounds` heads. Where all of an item's fit kStages, they are copied once.
template <class Sides, int kTile, int kPassing, int kStages>
struct HopperItem {
  Place place;  // begins where the item does
  int head, end;
  Range seen;  // by the whole item

  __device__ HopperItem(const AttentionArguments& a, const Schedule& schedule, const Units& units, int heads,
                        int index) {
    place = place_of(a, units, item_of(schedule, index, Sides::kLateFirst), heads, head);
    const int rows = Sides::rows(place);
    end = place.begin + units.rows < rows ? place.begin + units.rows : rows;
    if (place.begin >= end) return;
    const ScoreRules rules(a, place, 0);
    seen = {of_tile(rules, place.begin).begin, of_tile(rules, last_tile()).end};
  }
  // Whether all of `seen` stays in the ring until the last tile.
  __device__ __forceinline__ bool stays(int rounds) const {
    return rounds == 1 && fills(seen) <= kStages;
  }
  __device__ __forceinline__ int last_tile() const {
    return place.begin + (end - 1 - place.begin) / kTile * kTile;
  }
  __device__ __forceinline__ Place tile(int begin) const {
    Place at = place;
    at.begin = begin;
    return at;
  }
  // Neither end moves back from a tile to the next, and what one sees begins where that before ends, or earlier.
  __device__ __forceinline__ Range of_tile(const ScoreRules& rules, int begin) const {
    return Sides::seen(rules, tile(begin), kTile, kPassing);
  }
  static __device__ __forceinline__ unsigned fills(Range passing) {
    return passing.end > passing.begin ? static_cast<unsigned>((passing.end - passing.begin + kPassing - 1) / kPassing)
                                       : 0;
  }
};

// For the thread that copies: tile(item, begin) for each tile of each item, and for the rows of each tile that passes
// by it passing(item, row, round), but not where they are there already, and then pair(item, begin, row, round).
template <class Item, class Arguments, class Tile, class Passing, class Pair>
__device__ __forceinline__ void for_copies(const Arguments& a, int heads, int rounds, int tile_rows, int passing_rows,
                                           Tile tile, Passing passing, Pair pair) {
#pragma unroll 1
  for (int index = static_cast<int>(blockIdx.x); index < a.schedule.items; index += static_cast<int>(gridDim.x)) {
    const Item item(a, a.schedule, a.units, heads, index);
    const ScoreRules rules(a, item.place, 0);
    int next = 0;  // the first row that is not there, of those that stay
#pragma unroll 1
    for (int begin = item.place.begin; begin < item.end; begin += tile_rows) {
      tile(item, begin);
      const Range seen = item.of_tile(rules, begin);
#pragma unroll 1
      for (int round = 0; round < rounds; ++round)
#pragma unroll 1
        for (int row = seen.begin; row < seen.end; row += passing_rows) {
          if (!item.stays(rounds) || row >= next) {
            passing(item, row, round);
            next = row + passing_rows;
          }
          pair(item, begin, row, round);
        }
    }
  }
}

// For those who multiply: tile(item, place, seen, fill, gives_back) for each tile; `fill` is that of the rows at
// seen.begin in the first round. What stays is given back by the last tile: what that one does not see, by skip(fill).
template <class Item, class Arguments, class Tile, class Skip>
__device__ __forceinline__ void for_tiles(const Arguments& a, int heads, int rounds, int tile_rows, Tile tile,
                                          Skip skip) {
  unsigned fill = 0;
#pragma unroll 1
  for (int index = static_cast<int>(blockIdx.x); index < a.schedule.items; index += static_cast<int>(gridDim.x)) {
    const Item item(a, a.schedule, a.units, heads, index);
    const ScoreRules rules(a, item.place, 0);
    const int giving_back_from = item.stays(rounds) ? item.last_tile() : item.place.begin;
#pragma unroll 1
    for (int begin = item.place.begin; begin < item.end; begin += tile_rows) {
      const Range seen = item.of_tile(rules, begin);
      const bool gives_back = begin >= giving_back_from;
      const Range skipped{item.seen.begin, giving_back_from > item.place.begin ? seen.begin : item.seen.begin};
      const unsigned first = fill + item.fills(skipped);
      if (gives_back) {
#pragma unroll 1
        for (; fill < first; ++fill) skip(fill);
        fill += static_cast<unsigned>(rounds) * item.fills(seen);
      }
      tile(item, item.tile(begin), seen, first, gives_back);
    }
  }
}

// Dropout's decisions from the forward to the backward, a bit each: 128 keys of a query are four words, of which word w
// has those at 8 n + 2 w and 8 n + 2 w + 1 as its bits 2 n and 2 n + 1, as the lanes of a warp hold them.
struct KeptBits {
  static constexpr int kKeys = 128, kWords = 4, kRowBytes = 16;
  // Rows behind the last query of a tensor that belong to it too, since whole tiles are copied.
  static constexpr int kRowsBehind = 64;
  uint32_t* data = nullptr;
  int tiles = 0;                             // of 128 keys a query
  int64_t sequence = 0, head = 0, tile = 0;  // distances in words

  // The words of a query; null where the keys are behind what there is memory for.
  __device__ __forceinline__ uint32_t* of(const Place& place, int h, int query, int key) const {
    if (key / kKeys >= tiles) return nullptr;
    return data + place.sequence * sequence + h * head + key / kKeys * tile + int64_t{place.q_row + query} * kWords;
  }
};

// Whether weights are dropped, and whence it is known which.
enum class Dropping { none, drawn, kept };

// Warpgroups take turns: each starts its products when the one before has started its own, so that one's products run
// while the other works on scores. Barriers from kFirst on, one a warpgroup.
template <int kGroups, int kFirst>
struct Turns {
  int group;

  // All warpgroups, before the first turn.
  __device__ __forceinline__ void initialise() const {
    if (group == kGroups - 1) arrive_at(kFirst, 2 * kWarpgroup);
  }
  __device__ __forceinline__ void begin() const {
    meet(kFirst + group, 2 * kWarpgroup);
  }
  __device__ __forceinline__ void end() const {
    arrive_at(kFirst + (made_anew(group) + 1) % kGroups, 2 * kWarpgroup);
  }
};

}  // namespace fastssl::cuda
