// In which order blocks of attention's backward for compute capability 9.0 add to the gradients of the queries that
// they share: each has a tile of keys, and sums in memory do not depend on who comes first, since they take turns.
//
// Nobody should have to wait long for a turn:
// * Where everything is seen, blocks begin with different queries and go round, so that a tile of queries meets them
// one
//   after another. Those who share queries must run at the same time: a group are the tiles of keys of a head that
//   blocks, which all run, work on in the same round of theirs. Groups come one after another.
// * Under a mask, a block begins with the first queries that see its keys, which are later ones for later keys. Later
//   keys come first, and blocks take their tiles in that order, so that one waits only for who has begun before it.
#pragma once

#include "attention/hopper_backward_kernels.cuh"

namespace fastssl::cuda {

inline constexpr int kKeysInTurns = 128, kQueriesInTurns = kStatisticsTile, kAddingWarps = kWarpgroup / kWarp;

// The tiles of keys of a sequence and head, blocks each.
struct BlocksInTurns {
  int all, block;   // how many; which one this is
  int group, size;  // of those that go round together: the first one, and how many
  int tiles;        // of queries
  bool go_round;

  BlocksInTurns() = default;
  // Of the block that is the work's `index`-th.
  __device__ __forceinline__ BlocksInTurns(const Place& place, int index, bool go_round)
      : all((place.keys + kKeysInTurns - 1) / kKeysInTurns),
        block(place.begin / kKeysInTurns),
        tiles((place.queries + kQueriesInTurns - 1) / kQueriesInTurns),
        go_round(go_round) {
    const int at_once = static_cast<int>(gridDim.x), before_round = index / at_once * at_once - (index - block);
    group = before_round > 0 ? before_round : 0;
    size = (before_round + at_once < all ? before_round + at_once : all) - group;
  }
  // The tile of queries with which the block begins, of those that it meets.
  __device__ __forceinline__ int first_step() const {
    if (!go_round) return 0;
    return static_cast<int>(static_cast<unsigned>(block - group) * static_cast<unsigned>(tiles) /
                            static_cast<unsigned>(size));
  }
  // Of a tile of queries: which turn the block has, and how many there are. In a group, who begins with this tile, or
  // began last before it, comes first, then those before it, and round; under a mask all tiles of keys that it sees do,
  // the last one first.
  struct Turn {
    int mine, all;
  };
  __device__ __forceinline__ Turn turn_at(const ScoreRules& rules, const Place& place, int query) const {
    if (go_round) {
      const unsigned begun = (static_cast<unsigned>(query / kQueriesInTurns) + 1) * static_cast<unsigned>(size) - 1;
      const int last = static_cast<int>(begun / static_cast<unsigned>(tiles)), first = last < size ? last : size - 1;
      const int behind = first - (block - group);
      return {group + (behind < 0 ? behind + size : behind), all};
    }
    Place of_queries = place;
    of_queries.begin = query;
    const Range keys = keys_seen(rules, of_queries, kQueriesInTurns, kKeysInTurns);
    const int first = keys.begin / kKeysInTurns, last = (keys.end - 1) / kKeysInTurns;
    return {last - block, last - first + 1};
  }
};

// What a block of the kernel that makes all gradients does next, as one of its threads tells the others. A tile of keys
// and the tiles of queries that meet it; the last one has no keys.
struct KeyTile {
  Place place;
  int key_head;
  unsigned fill;        // of the ring of such tiles
  unsigned query_slot;  // the first of the sequence
  BlocksInTurns blocks;
  int begin, steps, first_step;

  __device__ __forceinline__ int query_at(int step) const {
    const int at = first_step + step;
    return begin + (at < steps ? at : at - steps) * kStatisticsTile;
  }
};
// For the warpgroup that adds: what becomes of the products of a stage. Without turns, there are none: of a tile of
// keys that nobody sees, or, without its end either, behind the last.
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
