// Attention for compute capability 9.0, all three gradients by one kernel: each score is made once. Blocks have tiles
// of keys, as in hopper_grad_kv_kernel.cuh; one more warpgroup multiplies the scores' gradients with the keys and adds
// that to sums in memory, where the blocks that share queries take turns (hopper_turns.cuh).
#pragma once

#include "attention/hopper_grad_kv_kernel.cuh"

namespace fastssl::cuda {

// What the queries' gradients need before: their statistics; the turns, none of which is over; no tile of keys taken;
// and zeros for queries that see nothing, to which nobody adds. A block has a tile of a head.
template <class T, int kWidth>
__global__ void __launch_bounds__(kWarpgroup) attention_statistics_hopper(const HopperGradArguments a) {
  using Rows = Tile<kQueriesInTurns, kWidth>;
  const int head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const Place place = place_of<kQueriesInTurns>(a, a.queries, blockIdx.x);
  if (blockIdx.x == 0 && head == 0 && thread == 0) *a.in_turns.taken = 0;
  if (place.begin >= place.queries) return;
  const Rows out{dynamic_shared()}, grad_out{dynamic_shared() + Rows::kBytes};
  const auto rows = [&](const AttentionRows& tensor) {
    return rows_in<const T>(a, tensor, place, place.q_row, head, place.begin, place.queries);
  };
  load_async<kWarpgroup>(out, rows(a.out));
  load_async<kWarpgroup>(grad_out, rows(a.grad_out));
  copy_async_commit();
  const int64_t tile = head * (a.statistics.head / kQueriesInTurns) + blockIdx.x;
  const int turns = a.in_turns.parts * kAddingWarps;
  if (thread < turns) a.in_turns.turns[tile * turns + thread] = 0;
  const ScoreRules rules(a, place, head);
  const Range seen = keys_seen(rules, place, kQueriesInTurns, kKeysInTurns);
  if (seen.begin >= seen.end) {
    const auto to = rows_in<T>(a, a.grad_q, place, place.q_row, head, place.begin, place.queries);
    for (int at = thread; at < kQueriesInTurns * Rows::kChunks; at += kWarpgroup) {
      const int row = at / Rows::kChunks, column = at % Rows::kChunks * kVector;
      if (row < to.count && column < to.width) store_packed(to.first + row * to.stride + column, Packed<T>{});
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  statistics_of_rows<T, 1>(a, place, head, out, grad_out, thread / kWarp * 16,
                           statistics_in_tiles(a, place, head) + place.begin, kQueriesInTurns);
}

// A lane's part of sums, put where they are added to, added to those, or these added to them.
__device__ __forceinline__ void put_in_memory(float4* memory, const Sums<1, 64>& sums) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float (&values)[4] = sums.at[0][n];
    memory[n * kWarp] = make_float4(values[0], values[1], values[2], values[3]);
  }
}
__device__ __forceinline__ void add_in_memory(float4* memory, const Sums<1, 64>& sums) {
#pragma unroll
  for (int n = 0; n < 8; ++n) add_in_memory(memory + n * kWarp, sums.at[0][n]);
}
__device__ __forceinline__ void add_from_memory(Sums<1, 64>& sums, const float4* memory) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float4 others = load_from_others(memory + n * kWarp);
    const float values[4] = {others.x, others.y, others.z, others.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) sums.at[0][n][e] += values[e];
  }
}

// The tile of keys that an item is; where it is none, it has none.
__device__ __forceinline__ void find_tile(const HopperGradArguments& a, int index, KeyTile& tile) {
  tile.place =
      place_of(a, a.units, item_of(a.schedule, index, !a.in_turns.go_round), a.heads / a.heads_per_key, tile.key_head);
  if (tile.place.begin >= tile.place.keys) return;
  const ScoreRules rules(a, tile.place, 0);
  const Range seen = queries_seeing(rules, tile.place, kKeysInTurns, kQueriesInTurns);
  tile.begin = seen.begin;
  tile.steps = seen.end > seen.begin ? (seen.end - seen.begin + kQueriesInTurns - 1) / kQueriesInTurns : 0;
  tile.query_slot = first_slot<kQueriesInTurns>(a.queries, tile.place.sequence);
  tile.blocks = BlocksInTurns(tile.place, index, a.in_turns.go_round);
  tile.first_step = tile.blocks.first_step();
}

// body(tile) for each tile that the block has; give_back(fill) lets it be forgotten.
template <class Shape, class Body, class GiveBack>
__device__ __forceinline__ void for_key_tiles(const HopperGradKVMemory<Shape>& memory, Body body, GiveBack give_back) {
#pragma unroll 1
  for (unsigned fill = 0;; ++fill) {
    memory.work.wait(fill);
    const KeyTile& tile = *memory.tile_of(fill);
    if (tile.place.begin >= tile.place.keys) return;
    body(tile);
    fill = tile.fill;
    give_back(fill);
  }
}

// The thread that tells the others what to do.
template <class T, class Shape>
__device__ __forceinline__ void hand_out_work(const HopperGradArguments& a, const HopperGradKVMemory<Shape>& memory) {
  unsigned key_fill = 0, ticket_fill = 0;
  const auto next = [&](int index) {
    return a.in_turns.go_round ? index + static_cast<int>(gridDim.x) : static_cast<int>(take_number(a.in_turns.taken));
  };
  const auto hand_over = [](const auto& ring, unsigned fill) { ring.full[ring.panel_of(fill)].arrive(); };
  const auto hand_out = [&](const Ticket& ticket) {
    memory.tickets.wait_to_fill(ticket_fill);
    *memory.ticket_of(ticket_fill) = ticket;
    hand_over(memory.tickets, ticket_fill++);
  };
#pragma unroll 1
  for (int index = next(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)); index < a.schedule.items;
       index = next(index)) {
    memory.work.wait_to_fill(key_fill);
    KeyTile& tile = *memory.tile_of(key_fill);
    find_tile(a, index, tile);
    tile.fill = key_fill;
    if (tile.place.begin >= tile.place.keys) continue;
    hand_over(memory.work, key_fill);
    if (tile.steps == 0) {
      Ticket nothing{};
      nothing.key_fill = key_fill;
      nothing.ends_tile = true;
      hand_out(nothing);
    }
#pragma unroll 1
    for (int round = 0; round < a.heads_per_key; ++round)
#pragma unroll 1
      for (int step = 0; step < tile.steps; ++step) {
        const int query = tile.query_at(step), head = tile.key_head * a.heads_per_key + round;
        const auto turn = tile.blocks.turn_at(ScoreRules(a, tile.place, 0), tile.place, query);
        const auto to = rows_in<T>(a, a.grad_q, tile.place, tile.place.q_row, head, query, tile.place.queries);
        const int64_t slot = tile.query_slot + static_cast<unsigned>(query / kQueriesInTurns);
        const int64_t warps = (head * (a.statistics.head / kQueriesInTurns) + slot) * a.in_turns.parts * kAddingWarps;
        const bool ends_tile = round == a.heads_per_key - 1 && step == tile.steps - 1;
        hand_out({a.in_turns.sums + warps * kSumsOfWarp, a.in_turns.turns + warps, to.first, static_cast<int>(to.count),
                  turn.mine, turn.all, key_fill, ends_tile});
      }
    ++key_fill;
  }
  memory.work.wait_to_fill(key_fill);
  memory.tile_of(key_fill)->place = Place{};
  hand_over(memory.work, key_fill);
  hand_out(Ticket{});
}

// Of the warpgroup that adds, a warp: 16 queries of a tile, 64 columns at a time.
template <class T, class Shape>
__device__ __forceinline__ void add_in_turns(const HopperGradArguments& a, const HopperGradKVMemory<Shape>& memory) {
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
  uint32_t *passed = nullptr, next = 0;  // of the sums that were added last
  unsigned fill = 0;                     // of scores
#pragma unroll 1
  for (unsigned ticket_fill = 0;; ++ticket_fill) {
    memory.tickets.wait(ticket_fill);
    const Ticket& ticket = *memory.ticket_of(ticket_fill);
    if (ticket.all_turns == 0 && !ticket.ends_tile) return;
    memory.tiles.wait(ticket.key_fill);
    if (ticket.all_turns > 0) {
      memory.scores.wait(fill);
#pragma unroll 1
      for (int part = 0; part < Shape::kWidth / 64; ++part) {
        Sums<1, 64> sums;
        fence_products();
        multiply_columns_async<T>(sums, memory.of_scores(fill), memory.of_keys(ticket.key_fill, 0), part);
        commit_products();
        const int turn = ticket.turn, place = part * kAddingWarps + warp;
        float4* sums_in_memory = ticket.sums + place * kSumsOfWarp + lane_of_warp();
        __syncwarp();  // all lanes have added what the first one says is added
        pass_and_wait_for_turn(lane_of_warp() == 0 ? passed : nullptr, next, ticket.passed + place,
                               static_cast<uint32_t>(turn));
        passed = nullptr;
        wait_for_products<0>();
        take(sums);
        if (turn < ticket.all_turns - 1) {
          if (turn == 0)
            put_in_memory(sums_in_memory, sums);
          else
            add_in_memory(sums_in_memory, sums);
          passed = ticket.passed + place;
          next = static_cast<uint32_t>(turn + 1);
        } else {
          if (turn > 0) add_from_memory(sums, sums_in_memory);
          const float factors[1][2] = {{a.scale * a.dropout.scale, a.scale * a.dropout.scale}};
          multiply_rows_by(sums, factors);
          store_sums(sums, RowsInMemory<T>{static_cast<T*>(ticket.to), a.grad_q.row, ticket.rows, a.width, true},
                     16 * warp, 64 * part);
        }
      }
      memory.scores.give_back(fill++);
    }
    if (ticket.ends_tile) {
      __syncwarp();
      if (passed && lane_of_warp() == 0) pass_turn(passed, next);
      passed = nullptr;
      memory.tiles.give_back(ticket.key_fill);
    }
    memory.tickets.give_back(ticket_fill);
  }
}

template <class T, class Shape, Dropping kDropping>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_grad_hopper(const __grid_constant__ HopperGradArguments a) {
  static_assert(Shape::kKeys == kKeysInTurns && Shape::kQueries == kQueriesInTurns);
  const HopperGradKVMemory<Shape> memory;
  const auto copy = [&] {
    if (threadIdx.x == kWarp) hand_out_work<T>(a, memory);
    if (threadIdx.x > 0) return;
    HopperGradKVCopies<Shape, kDropping> copies{a, memory};
    copies.prefetch_maps();
    const auto tile = [&](const KeyTile& tile) {
      copies.keys(tile.place, tile.key_head);
#pragma unroll 1
      for (int round = 0; round < a.heads_per_key; ++round)
#pragma unroll 1
        for (int step = 0; step < tile.steps; ++step) {
          const int head = tile.key_head * a.heads_per_key + round;
          copies.queries(tile.place, head, tile.query_at(step));
          copies.decisions(tile.place, head, tile.query_at(step));
        }
    };
    for_key_tiles(memory, tile, [&](unsigned fill) { memory.work.empty[memory.work.panel_of(fill)].arrive(); });
  };
  const auto multiply = [&](const Turns<Shape::kGroups, 1>& turns, int row) {
    const PhiloxKey seed = kDropping == Dropping::drawn ? philox_key(a.dropout) : PhiloxKey{};
    unsigned fill = 0, kept_fill = 0;
    const auto tile = [&](const KeyTile& of_block) {
      HopperGradKVTile<T, Shape, kDropping, KeyTile> tile{
          a, memory, turns, of_block.place, of_block, row, seed, of_block.fill, true, {}, {}, {}, {}};
      tile.add_queries(fill, kept_fill);
      tile.finish();
      memory.tiles.give_back(of_block.fill);
    };
    for_key_tiles(memory, tile, [&](unsigned fill) { memory.work.give_back(fill); });
  };
  in_roles<Shape>(memory, copy, multiply, [&] { add_in_turns<T>(a, memory); });
}

}  // namespace fastssl::cuda
