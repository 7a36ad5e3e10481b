// Kernels that try the emulation itself: what works on a GPU works, and what does not is found.
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/hopper_turns.cuh"
#include "cuda/dropout.cuh"
#include "cuda/hopper.cuh"
#include "cuda/reductions.cuh"
#include "cuda/vectors.cuh"

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

__global__ void copies_of_nothing(const uint32_t* source) {
  auto* shared = reinterpret_cast<uint4*>(dynamic_shared());
  copy_async_16_or_zero(shared, source, false);
  copy_async_16_or_zero(shared + 1, source, true);
  copy_async_commit();
  copy_async_wait<0>();
  expect(shared[0].x == 0 && shared[0].w == 0 && shared[1].x == source[0] && shared[1].w == source[3]);
}

// The fragments of mma.m16n8k16 as the PTX ISA writes them: group = lane / 4, member = lane % 4, element i.
int a_row(int group, int i) {
  return i == 0 || i == 1 || i == 4 || i == 5 ? group : group + 8;
}
int a_column(int member, int i) {
  return i < 4 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8;
}
int b_row(int member, int i) {
  return i < 2 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8;
}
int c_row(int group, int i) {
  return i < 2 ? group : group + 8;
}
int c_column(int member, int i) {
  return member * 2 + (i & 1);
}
float a_value(int row, int column) {
  return static_cast<float>((row * 7 + column * 3) % 13 - 6);
}
float b_value(int row, int column) {
  return static_cast<float>((row * 5 + column * 11) % 9 - 4);
}

template <class T>
uint32_t pair(float low, float high) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return narrow_bfloat16(low, high);
  else
    return narrow_half(low, high);
}

template <class T>
__global__ void matrix_product() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, member = lane % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 8; i += 2)
    a[i / 2] =
        pair<T>(a_value(a_row(group, i), a_column(member, i)), a_value(a_row(group, i + 1), a_column(member, i + 1)));
  for (int i = 0; i < 4; i += 2)
    b[i / 2] = pair<T>(b_value(b_row(member, i), group), b_value(b_row(member, i + 1), group));
  float c[4] = {0.0f, 1.0f, 2.0f, 3.0f};
  if constexpr (std::is_same_v<T, BFloat16>)
    multiply_bfloat16(c, make_uint4(a[0], a[1], a[2], a[3]), b[0], b[1]);
  else
    multiply_half(c, make_uint4(a[0], a[1], a[2], a[3]), b[0], b[1]);
  for (int i = 0; i < 4; ++i) {
    float expected = static_cast<float>(i);
    for (int k = 0; k < 16; ++k) expected += a_value(c_row(group, i), k) * b_value(k, c_column(member, i));
    expect(c[i] == expected);
  }
}

__global__ void matrices() {
  auto* shared = reinterpret_cast<uint16_t*>(dynamic_shared());
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, member = lane % 4;
  for (int i = lane; i < 4 * 64; i += kWarp) shared[i] = static_cast<uint16_t>(i);  // 64 matrix + 8 row + column
  __syncwarp();
  const auto word = [](int low, int high) { return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16; };
  const uint4 rows = load_matrices<false>(shared + 8 * lane), columns = load_matrices<true>(shared + 8 * lane);
  const uint32_t by_rows[4] = {rows.x, rows.y, rows.z, rows.w};
  const uint32_t by_columns[4] = {columns.x, columns.y, columns.z, columns.w};
  for (int m = 0; m < 4; ++m) {
    const int row = 64 * m + 8 * group + 2 * member, column = 64 * m + 16 * member + group;
    expect(by_rows[m] == word(row, row + 1) && by_columns[m] == word(column, column + 8));
    expect(transpose_matrix(by_rows[m]) == by_columns[m]);
  }
}

// Shared memory with room for barriers behind the first 40 KiB.
unsigned char* panels() {
  return shared_panels();
}
Barrier* barriers() {
  return reinterpret_cast<Barrier*>(panels() + 40 * 1024);
}
constexpr size_t kPanelsBytes = 42 * 1024;

// Where element `column` of row `row` of a box lies (CUDA C++ Programming Guide, 128-byte swizzle).
uint16_t& in_box(unsigned char* box, int row, int column) {
  return reinterpret_cast<uint16_t*>(box + 128 * row)[(column / 8 ^ row % 8) * 8 + column % 8];
}

// Rows 3 to 18 of head 1 of sequence 1, columns from 64 on, of 2 x 3 x 20 x 80: columns and rows end within the box.
__global__ void boxes(const TensorMap map) {
  Barrier& full = barriers()[0];
  if (threadIdx.x == 0) {
    full.initialise(1);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 40) {
    full.arrive_and_expect(32 * 128);
    copy_box(panels(), map, full, 64, 3, 1, 1);
    expect(in_box(panels(), 0, 0) == 0xffff);  // as late as CUDA allows: nobody waits yet
  }
  __syncthreads();
  full.wait(0);
  for (int row = 0; row < 32; ++row)
    for (int column = 0; column < 64; ++column) {
      const bool inside = row < 17 && column < 16;
      const int value = 1000 * 4 + 20 * (3 + row) + column;  // the fifth of sequences times heads
      expect(in_box(panels(), row, column) == (inside ? value : 0));
    }
}

// Two threads fill a buffer three times, the other 62 read it; phases follow each other.
__global__ void phases() {
  Barrier &full = barriers()[0], &empty = barriers()[1];
  auto* buffer = reinterpret_cast<uint32_t*>(panels());
  if (threadIdx.x == 0) {
    full.initialise(2);
    empty.initialise(62);
    fence_barriers();
  }
  __syncthreads();
  for (uint32_t fill = 0; fill < 3; ++fill) {
    if (threadIdx.x < 2) {
      empty.wait(fill + 1);  // of the fill before; the first passes
      buffer[threadIdx.x] = 10 * fill + threadIdx.x;
      full.arrive();
    } else {
      full.wait(fill);
      expect(buffer[0] == 10 * fill && buffer[1] == 10 * fill + 1);
      empty.arrive();
    }
  }
}

__global__ void copies_of_bytes(const uint32_t* source) {
  barriers()->initialise(1);
  barriers()->arrive_and_expect(32);
  copy_bytes(panels(), source, 32, *barriers());
  barriers()->wait(0);
  expect(std::memcmp(panels(), source, 32) == 0);
}

__global__ void named_barriers() {
  auto* shared = reinterpret_cast<uint32_t*>(panels());
  if (threadIdx.x < 32) {
    shared[threadIdx.x] = threadIdx.x;
    arrive_at(3, 64);  // goes on
  } else {
    meet(3, 64);
    expect(shared[threadIdx.x - 32] == threadIdx.x - 32);
  }
}

// c = A B + A B of 64 x 16 and 16 x kColumns, with every way in which operands may lie.
enum class LeftLies { in_registers, by_rows, by_columns };
template <class T, LeftLies kLeft, bool kByRows, int kColumns>
__global__ void group_product() {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  unsigned char *left = panels(), *right = panels() + 64 * 128;
  const auto one = [](float value) { return static_cast<uint16_t>(pair<T>(value, 0.0f)); };
  constexpr bool kByColumns = kLeft == LeftLies::by_columns;
  for (int i = thread; i < 64 * 16; i += kWarpgroup) {
    const int m = i / 16, k = i % 16;
    (kByColumns ? in_box(left, 8 + k, m) : in_box(left, m, 32 + k)) = one(a_value(m, k));
  }
  for (int i = thread; i < 16 * kColumns; i += kWarpgroup) {
    const int k = i / kColumns, n = i % kColumns;
    if constexpr (kByRows)
      in_box(right + n / 64 * 32 * 128, 8 + k, n % 64) = one(b_value(k, n));  // blocks of 64 columns, 32 rows each
    else
      in_box(right, n, 16 + k) = one(b_value(k, n));
  }
  fence_for_async();
  __syncthreads();
  uint4 a;
  uint32_t words[4];
  for (int m = 0; m < 4; ++m) {
    const int row = 16 * warp + lane / 4 + m % 2 * 8, column = lane % 4 * 2 + m / 2 * 8;
    words[m] = pair<T>(a_value(row, column), a_value(row, column + 1));
  }
  a = make_uint4(words[0], words[1], words[2], words[3]);
  const SharedMatrix b = kByRows ? moved(shared_matrix(shared_address(right), 32 * 128), 8 * 128)
                                 : moved(shared_matrix(shared_address(right), 16), 32);
  Sums<1, kColumns> c;
  fence_products();
  for (int repeat = 0; repeat < 2; ++repeat) {
    if constexpr (kLeft == LeftLies::in_registers)
      multiply_async<T, kByRows>(c, a, b, repeat > 0);
    else
      multiply_async<T, kByColumns, kByRows>(
          c, moved(shared_matrix(shared_address(left), 16), kByColumns ? 8 * 128 : 64), b, repeat > 0);
    commit_products();
  }
  expect(std::isnan(c.at[0][0][0]));  // as late as CUDA allows
  wait_for_products<0>();
  for (int n = 0; n < kColumns / 8; ++n)
    for (int e = 0; e < 4; ++e) {
      float expected = 0.0f;
      for (int k = 0; k < 16; ++k)
        expected += a_value(16 * warp + lane / 4 + e / 2 * 8, k) * b_value(k, 8 * n + lane % 4 * 2 + e % 2);
      expect(c.at[0][n][e] == 2.0f * expected);
    }
}
template <class T>
void group_products() {
  const dim3 one(1), threads(kWarpgroup);
  const auto run = [&](auto kernel) { launch(kernel, one, threads, kPanelsBytes, nullptr); };
  run(group_product<T, LeftLies::in_registers, true, 32>);
  run(group_product<T, LeftLies::in_registers, true, 64>);
  run(group_product<T, LeftLies::in_registers, true, 128>);
  run(group_product<T, LeftLies::in_registers, false, 64>);
  run(group_product<T, LeftLies::by_rows, true, 128>);
  run(group_product<T, LeftLies::by_rows, false, 32>);
  run(group_product<T, LeftLies::by_rows, false, 128>);
  run(group_product<T, LeftLies::by_columns, true, 64>);
  run(group_product<T, LeftLies::by_columns, false, 32>);
}

// Blocks of attention's backward on a GPU, on which each makes the scores of a tile of queries in a unit of time: it
// adds when its turn has come, which others know a unit later, and makes two more steps at most meanwhile.
struct BackwardOnGpu {
  struct Work {              // a block's tile of keys
    std::vector<int> tiles;  // of queries, one a step
    std::vector<BlocksInTurns::Turn> turns;
    size_t made = 0, added = 0;
  };
  AttentionArguments a{};
  int queries = 0, keys = 0, heads = 0;

  Work work(int index) const {
    const int units = (keys + kKeysInTurns - 1) / kKeysInTurns, unit = index % units;
    const bool go_round = a.window_left == 1 << 30 && a.window_right == 1 << 30;
    Place place{};
    place.queries = queries;
    place.keys = keys;
    place.begin = (go_round ? unit : units - 1 - unit) * kKeysInTurns;
    const ScoreRules rules(a, place, 0);
    const Range seen = queries_seeing(rules, place, kKeysInTurns, kQueriesInTurns);
    KeyTile tile{};
    tile.place = place;
    tile.blocks = BlocksInTurns(place, index, go_round);
    tile.begin = seen.begin;
    tile.steps = seen.end > seen.begin ? (seen.end - seen.begin + kQueriesInTurns - 1) / kQueriesInTurns : 0;
    tile.first_step = tile.blocks.first_step();
    Work work;
    for (int step = 0; step < tile.steps; ++step) {
      work.tiles.push_back(tile.query_at(step) / kQueriesInTurns);
      work.turns.push_back(tile.blocks.turn_at(rules, place, tile.query_at(step)));
    }
    return work;
  }
  // Runs it all; returns which share of the time blocks make scores.
  double busy_share() const {
    const bool go_round = a.window_left == 1 << 30 && a.window_right == 1 << 30;
    const int units = (keys + kKeysInTurns - 1) / kKeysInTurns, items = heads * units;
    const int blocks = static_cast<int>(gridDim.x), tiles = (queries + kQueriesInTurns - 1) / kQueriesInTurns;
    std::vector<std::vector<int>> passed(static_cast<size_t>(heads), std::vector<int>(static_cast<size_t>(tiles), 0));
    std::vector<std::vector<int>> all = passed;
    std::vector<int> head_of(static_cast<size_t>(blocks), -1), index_of(static_cast<size_t>(blocks), -1);
    std::vector<Work> works(static_cast<size_t>(blocks));
    std::vector<int*> to_pass;
    int64_t steps = 0, time = 0;
    int taken = 0, idle_time = 0;
    for (int done = 0; done < blocks; ++time) {
      for (int* turn : to_pass) ++*turn;
      to_pass.clear();
      done = 0;
      bool progress = false;
      for (int block = 0; block < blocks; ++block) {
        Work& now = works[static_cast<size_t>(block)];
        int& index = index_of[static_cast<size_t>(block)];
        while (index < items && now.added == now.tiles.size()) {
          index = !go_round ? taken++ : index < 0 ? block : index + blocks;
          now = index < items ? work(index) : Work{};
          head_of[static_cast<size_t>(block)] = index / units;
          progress = true;
        }
        if (index >= items) {
          ++done;
          continue;
        }
        const auto head = static_cast<size_t>(head_of[static_cast<size_t>(block)]);
        if (now.added < now.made) {
          const auto tile = static_cast<size_t>(now.tiles[now.added]);
          const BlocksInTurns::Turn turn = now.turns[now.added];
          expect(turn.mine >= passed[head][tile] && turn.mine < turn.all);
          expect(all[head][tile] == 0 || all[head][tile] == turn.all);
          all[head][tile] = turn.all;
          if (turn.mine == passed[head][tile]) {
            to_pass.push_back(&passed[head][tile]);
            ++now.added;
            progress = true;
          }
        }
        if (now.made < now.tiles.size() && now.made < now.added + 2) {
          ++now.made;
          ++steps;
          progress = true;
        }
      }
      idle_time = progress || !to_pass.empty() ? 0 : idle_time + 1;
      expect(idle_time < 3 || done == blocks);  // or they wait for each other
    }
    expect(passed == all);
    return static_cast<double>(steps) / (static_cast<double>(time) * blocks);
  }
};
// `least` share of the time in which blocks make scores, with as many of them as an H100 has.
__global__ void turns_of_attention(int queries, int keys, int heads, int window_left, int window_right, double least) {
  if (blockIdx.x > 0) return;
  BackwardOnGpu gpu;
  gpu.a.window_left = window_left;
  gpu.a.window_right = window_right;
  gpu.queries = queries;
  gpu.keys = keys;
  gpu.heads = heads;
  expect(gpu.busy_share() >= least);
}

// Three blocks add in the order of the last one first: a, b + a, c + (b + a).
__global__ void turns_of_blocks(uint32_t* turns, float4* sums) {
  const uint32_t mine = 2 - blockIdx.x;
  const float values[4] = {1.0f, 2.0f, 3.0f, static_cast<float>(mine)};
  wait_for_turn(turns + threadIdx.x, mine);
  if (mine == 0)
    sums[threadIdx.x] = make_float4(values[0], values[1], values[2], values[3]);
  else
    add_in_memory(sums + threadIdx.x, values);
  const float4 sum = load_from_others(sums + threadIdx.x);
  const float count = static_cast<float>(mine + 1);
  expect(sum.x == count && sum.z == 3.0f * count && sum.w == static_cast<float>(mine * (mine + 1) / 2));
  __syncthreads();
  pass_turn(turns + threadIdx.x, mine + 1);
}
__global__ void turn_that_never_comes(const uint32_t* turns) {
  wait_for_turn(turns, 1);
}

__global__ void product_without_a_fence() {
  Sums<1, 64> c;
  multiply_async<Half, false>(c, make_uint4(0, 0, 0, 0), shared_matrix(shared_address(panels()), 16), false);
}
__global__ void product_that_nobody_waits_for() {
  Sums<1, 64> c;
  fence_products();
  multiply_async<Half, false>(c, make_uint4(0, 0, 0, 0), shared_matrix(shared_address(panels()), 16), false);
  commit_products();
}
__global__ void matrices_that_differ() {
  Sums<1, 64> c;
  fence_products();
  const uint32_t address = shared_address(panels()) + threadIdx.x % 2 * 1024;
  multiply_async<Half, false>(c, make_uint4(0, 0, 0, 0), shared_matrix(address, 16), false);
}
__global__ void operand_that_is_written_too_early() {
  Sums<1, 64> c;
  uint4 a = make_uint4(0, 0, 0, 0);
  fence_products();
  multiply_async<Half, false>(c, a, shared_matrix(shared_address(panels()), 16), false);
  commit_products();
  a.x = 1;
  wait_for_products<0>();
}
__global__ void product_of_writes_without_a_fence() {
  for (int i = static_cast<int>(threadIdx.x); i < 64; i += kWarpgroup)
    for (int column = 0; column < 16; ++column) in_box(panels(), i, column) = 0;
  __syncthreads();
  Sums<1, 64> c;
  const uint4 a = make_uint4(0, 0, 0, 0);  // in registers until the product has ended
  fence_products();
  multiply_async<Half, false>(c, a, shared_matrix(shared_address(panels()), 16), false);
  commit_products();
  wait_for_products<0>();
  expect(c.at[0][0][0] == 0.0f);
}
__global__ void copy_over_writes_without_a_fence(const uint32_t* source) {
  barriers()->initialise(1);
  barriers()->arrive_and_expect(16);
  panels()[3] = 1;
  copy_bytes(panels(), source, 16, *barriers());
}
__global__ void copy_that_nobody_waits_for(const uint32_t* source) {
  barriers()->initialise(1);
  barriers()->arrive_and_expect(16);
  copy_bytes(panels(), source, 16, *barriers());
}
__global__ void barrier_that_was_not_initialised() {
  barriers()->arrive();
}
__global__ void bytes_that_do_not_come() {
  barriers()->initialise(1);
  barriers()->arrive_and_expect(16);
  barriers()->wait(0);
}
__global__ void misaligned_box(const TensorMap map) {
  barriers()->initialise(1);
  copy_box(panels() + 512, map, *barriers(), 0, 0, 0, 0);
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
  if (name == "copies of nothing") return launch(copies_of_nothing, one, dim3(1), 32, nullptr, source);
  if (name == "matrices") return launch(matrices, one, dim3(32), 512, nullptr);
  if (name == "products of bfloat16") return launch(matrix_product<BFloat16>, one, threads, 0, nullptr);
  if (name == "products of float16") return launch(matrix_product<Half>, one, threads, 0, nullptr);
  static const std::vector<uint16_t> tensor = [] {
    std::vector<uint16_t> values(2 * 3 * 20 * 80);  // rows before heads, as tensors of attention are
    for (int i = 0; i < 6; ++i)
      for (int row = 0; row < 20; ++row)
        for (int column = 0; column < 80; ++column)
          values[static_cast<size_t>(((i / 3 * 20 + row) * 3 + i % 3) * 80 + column)] =
              static_cast<uint16_t>(1000 * i + 20 * row + column - 64);
    return values;
  }();
  if (name == "boxes" || name == "misaligned box") {
    const TensorMap map = tensor_map(tensor.data(), 80, 20, 3, 2, 3 * 80, 80, 20 * 3 * 80, 32);
    return launch(name == "boxes" ? boxes : misaligned_box, one, name == "boxes" ? threads : dim3(1), kPanelsBytes,
                  nullptr, map);
  }
  if (name == "phases") return launch(phases, dim3(2), threads, kPanelsBytes, nullptr);
  if (name == "copies of bytes") return launch(copies_of_bytes, one, dim3(1), kPanelsBytes, nullptr, source);
  if (name == "named barriers") return launch(named_barriers, one, threads, kPanelsBytes, nullptr);
  if (name == "products of groups in bfloat16") return group_products<BFloat16>();
  if (name == "products of groups in float16") return group_products<Half>();
  if (name == "turns of attention") {
    constexpr int kAll = 1 << 30;
    const auto run = [](int blocks, int queries, int keys, int heads, int left, int right, double least) {
      launch(turns_of_attention, dim3(static_cast<unsigned>(blocks)), dim3(1), 0, nullptr, queries, keys, heads, left,
             right, least);
    };
    for (const int length : {2048, 2816, 4352, 6144, 8576}) {
      const int heads = 16 * 132 * 128 / length;  // 16 tiles of keys a block
      run(132, length, length, heads, kAll, kAll, 0.965);
      run(132, length, length, heads, kAll, 0, 0.87);
    }
    for (const int blocks : {1, 3, 7}) {
      run(blocks, 1000, 1000, 5, kAll, kAll, 0.0);
      run(blocks, 200, 1500, 3, kAll, kAll, 0.0);
      run(blocks, 1000, 70, 3, kAll, 0, 0.0);
      run(blocks, 70, 1000, 3, kAll, 0, 0.0);
      run(blocks, 1500, 1500, 3, 300, 0, 0.0);
      run(blocks, 1500, 1700, 3, 300, 500, 0.0);
    }
    return;
  }
  if (name == "turns of blocks" || name == "turns of blocks apart" || name == "too many blocks" ||
      name == "turn that never comes") {
    std::vector<uint32_t> turns(64, 0);
    std::vector<float4> sums(64);
    if (name == "turn that never comes")
      return launch_together(turn_that_never_comes, dim3(2), dim3(1), 0, nullptr, turns.data());
    const auto start =
        name == "turns of blocks apart" ? launch<uint32_t*, float4*> : launch_together<uint32_t*, float4*>;
    return start(turns_of_blocks, dim3(name == "too many blocks" ? 4 : 3), threads, 0, nullptr, turns.data(),
                 sums.data());
  }
  if (name == "no fence") return launch(product_without_a_fence, one, dim3(kWarpgroup), kPanelsBytes, nullptr);
  if (name == "product under way")
    return launch(product_that_nobody_waits_for, one, dim3(kWarpgroup), kPanelsBytes, nullptr);
  if (name == "operand written too early")
    return launch(operand_that_is_written_too_early, one, dim3(kWarpgroup), kPanelsBytes, nullptr);
  if (name == "product of writes without a fence")
    return launch(product_of_writes_without_a_fence, one, dim3(kWarpgroup), kPanelsBytes, nullptr);
  if (name == "copy over writes without a fence")
    return launch(copy_over_writes_without_a_fence, one, dim3(1), kPanelsBytes, nullptr, source);
  if (name == "different matrices") return launch(matrices_that_differ, one, dim3(kWarpgroup), kPanelsBytes, nullptr);
  if (name == "copy under way") return launch(copy_that_nobody_waits_for, one, dim3(1), kPanelsBytes, nullptr, source);
  if (name == "unknown barrier") return launch(barrier_that_was_not_initialised, one, dim3(1), kPanelsBytes, nullptr);
  if (name == "missing bytes") return launch(bytes_that_do_not_come, one, dim3(1), kPanelsBytes, nullptr);
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
