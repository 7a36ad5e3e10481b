// In which order blocks of attention's backward for compute capability 9.0 add to the gradients of the queries that
// they share: each has a tile of keys, and sums in memory do not depend on who comes first, since they take turns.
//
// Nobody should have to wait for a turn: where everything is seen, blocks begin with different queries and go round, so
// that a tile of queries meets them one after another; under a mask, with the first queries that see their keys, which
// are later ones for later keys. Either way those who share queries must run at the same time.
#pragma once

#include "attention/hopper_backward_kernels.cuh"

namespace fastssl::cuda {

inline constexpr int kKeysInTurns = 128, kQueriesInTurns = kStatisticsTile, kAddingWarps = kWarpgroup / kWarp;

// The tiles of keys of a sequence and head, blocks each: as many at a time as blocks run.
struct BlocksInTurns {
  int all, group, size;  // how many; the first of those that run at the same time, and how many these are
  int block;             // among all
  int tiles;             // of queries
  bool go_round;

  BlocksInTurns() = default;
  __device__ __forceinline__ BlocksInTurns(const ScoreRules& rules, const Place& place)
      : all((place.keys + kKeysInTurns - 1) / kKeysInTurns),
        block(place.begin / kKeysInTurns),
        tiles((place.queries + kQueriesInTurns - 1) / kQueriesInTurns),
        go_round(rules.window_left >= place.keys - 1 && rules.window_right >= place.queries - 1) {
    const int at_once = static_cast<int>(gridDim.x);
    group = block / at_once * at_once;
    size = all - group < at_once ? all - group : at_once;
  }
  // The tile of queries with which the block begins, of those that it meets.
  __device__ __forceinline__ int first_step() const {
    if (!go_round) return 0;
    return static_cast<int>(static_cast<unsigned>(block - group) * static_cast<unsigned>(tiles) /
                            static_cast<unsigned>(size));
  }
  // Of a tile of queries: which turn the block has, and how many there are. Groups come one after another; within one,
  // the block that begins with this tile, or began last before it, comes first, then those before it, and round.
  struct Turn {
    int mine, all;
  };
  __device__ __forceinline__ Turn turn_at(const ScoreRules& rules, const Place& place, int query) const {
    if (go_round) {
      const unsigned tile = static_cast<unsigned>(query / kQueriesInTurns),
                     begun = (tile + 1) * static_cast<unsigned>(size) - 1;
      const int last = static_cast<int>(begun / static_cast<unsigned>(tiles)),
                first = last < size - 1 ? last : size - 1;
      const int behind = first - (block - group);
      return {group + (behind < 0 ? behind + size : behind), all};
    }
    Place of_queries = place;
    of_queries.begin = query;
    const Range keys = keys_seen(rules, of_queries, kQueriesInTurns, kKeysInTurns);
    const int first = keys.begin / kKeysInTurns, last = (keys.end - 1) / kKeysInTurns;
    const int last_in_group = last < group + size ? last : group + size - 1;
    return {(first < group ? group - first : 0) + last_in_group - block, last - first + 1};
  }
};

// What a block of the kernel that makes all gradients does next, as one of its threads tells the others. A tile of keys
// and the tiles of queries that meet it; the last one has no keys.
struct KeyTile {
  Place place;
  int key_head;
  unsigned fill;  // of the ring of such tiles
  BlocksInTurns blocks;
  int begin, steps, first_step;

  __device__ __forceinline__ int query_at(int step) const {
    const int at = first_step + step;
    return begin + (at < steps ? at : at - steps) * kStatisticsTile;
  }
};
// For the warpgroup that adds: what becomes of the products of a stage. The last one has no turns.
struct Ticket {
  float4* sums;         // of the tile of queries
  uint32_t* passed;     // how many turns are over
  void* to;             // the first of its rows of the gradient
  int rows;             // of them that exist
  int turn, all_turns;  // the block's
  unsigned key_fill;
  bool ends_tile;  // of keys
};

}  // namespace fastssl::cuda
