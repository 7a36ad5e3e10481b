// What goes on beside the threads behind hopper_on_host.h.
#include <algorithm>
#include <limits>
#include <map>
#include <vector>

#include "cuda/hopper.cuh"

namespace cuda_on_host {
namespace {

constexpr int kGroupOfWarps = 128;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kBoxColumns = 64, kBoxRowBytes = 2 * kBoxColumns;

// Where chunks of 16 bytes go within 1024 bytes.
uint32_t changed_place(uint32_t address) {
  return address ^ address / 128 % 8 * 16;
}

unsigned char* memory_at(uint32_t address) {
  return dynamic_shared() + address - kSharedBegin;
}

// A copy under way: of a box, or of bytes that lie side by side.
struct Copy {
  unsigned char* shared;
  int64_t bytes;
  const unsigned char* global;  // null for a box
  TensorMap map;
  int place[4];

  void arrive() const {
    if (global) {
      std::memcpy(shared, global, static_cast<size_t>(bytes));
      return;
    }
    const auto inside = [&](int dimension, int index) { return index >= 0 && index < map.sizes[dimension]; };
    for (int row = 0; row < map.box_rows; ++row)
      for (int column = 0; column < kBoxColumns; ++column) {
        const int at[4] = {place[0] + column, place[1] + row, place[2], place[3]};
        uint16_t element = 0;
        if (inside(0, at[0]) && inside(1, at[1]) && inside(2, at[2]) && inside(3, at[3])) {
          int64_t from = 0;
          for (int d = 0; d < 4; ++d) from += at[d] * map.bytes[d];
          std::memcpy(&element, map.data + from, 2);
        }
        const uint32_t linear = fastssl::cuda::shared_address(shared + row * kBoxRowBytes + 2 * column);
        std::memcpy(memory_at(changed_place(linear)), &element, 2);
      }
  }
};

struct BarrierState {
  uint32_t arrivals = 0, missing = 0, phase = 0;
  int64_t bytes_missing = 0;
  std::vector<Copy> copies;  // under way
  std::vector<int> waiting;  // threads
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  std::vector<int> waiting;
};

struct Product {
  float* sums;
  int columns, group;
  const uint4* registers;  // of the left operand, or null
  uint4 given;             // what was in them
  bool by_columns, by_rows, add;
  float rows[2][16];  // of the left operand, this thread's two
  uint64_t a, b;
  float (*widen)(uint16_t);
  std::vector<float> before;  // what the sums were, in the first of several products
};

struct Thread {
  std::vector<Product> products;
  int groups_committed = 0;
  bool fenced = false;
};

struct BlockState {
  std::vector<unsigned char> fenced;  // shared memory as products and copies meet it
  std::map<void*, BarrierState> barriers;
  NamedBarrier named[16];
  std::vector<Thread> threads;
};

std::map<const void*, BlockState> blocks;

BlockState& of_block() {
  return blocks[this_block()];
}

void begin_block(int count) {
  of_block() = {};
  of_block().threads.resize(static_cast<size_t>(count));
  fence_for_async();
}

unsigned char* fenced_at(unsigned char* shared) {
  return of_block().fenced.data() + (shared - dynamic_shared());
}

const char* end_block() {
  const BlockState ended = std::move(of_block());
  blocks.erase(this_block());
  for (const auto& [address, barrier] : ended.barriers)
    if (!barrier.copies.empty()) return "a copy that nobody waited for";
  for (const Thread& thread : ended.threads)
    if (!thread.products.empty()) return "products that nobody waited for";
  return nullptr;
}

[[maybe_unused]] const bool watching = (watch_blocks(begin_block, end_block), true);

BarrierState& state_of(void* barrier) {
  auto& barriers = of_block().barriers;
  const auto found = barriers.find(barrier);
  if (found == barriers.end()) fail("a barrier that was not initialised");
  return found->second;
}

Thread& this_thread() {
  return of_block().threads[static_cast<size_t>(thread_index())];
}

void wake_all(std::vector<int>& waiting) {
  for (const int thread : waiting) wake(thread);
  waiting.clear();
}

// Lets copies arrive, and ends the phase if nothing is missing any more.
void settle(BarrierState& barrier, bool copies_arrive) {
  if (copies_arrive) {
    for (const Copy& copy : barrier.copies) {
      copy.arrive();
      std::memcpy(fenced_at(copy.shared), copy.shared, static_cast<size_t>(copy.bytes));
      barrier.bytes_missing -= copy.bytes;
    }
    barrier.copies.clear();
  }
  if (barrier.missing > 0 || barrier.bytes_missing != 0) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
  wake_all(barrier.waiting);
}

uint32_t field(uint64_t matrix, int begin) {
  return static_cast<uint32_t>(matrix >> begin & 0x3fff) * 16;
}

// Element k of row r where a row of memory is a row; of column r, element k, where a row of memory has all r of a k.
float matrix_element(const unsigned char* shared, uint64_t matrix, int r, int k, bool by_rows,
                     float (*widen)(uint16_t)) {
  const auto row = static_cast<uint32_t>(by_rows ? k : r), column = static_cast<uint32_t>(by_rows ? r : k);
  const uint32_t blocks = by_rows ? column / 64 * field(matrix, 16) + column % 64 * 2 : column * 2;
  const uint32_t address = field(matrix, 0) + row / 8 * field(matrix, 32) + row % 8 * 128 + blocks;
  const uint32_t place = changed_place(address) - kSharedBegin;
  if (place + sizeof(uint16_t) > dynamic_shared_bytes()) fail("a matrix outside the shared memory");
  return widen(*reinterpret_cast<const uint16_t*>(shared + place));
}

struct LeftRows {
  const uint4* registers;
  float (*widen)(uint16_t);
  float rows[2][16];
};

// Hands each lane the two rows that it has sums of.
void gather_rows(void* const all[kLanes], uint32_t) {
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* mine = static_cast<LeftRows*>(all[lane]);
    for (int column = 0; column < 16; ++column) {
      const uint4& from = *static_cast<const LeftRows*>(all[lane / 4 * 4 + column % 8 / 2])->registers;
      const uint32_t words[4] = {from.x, from.y, from.z, from.w};
      for (int half = 0; half < 2; ++half)
        mine->rows[half][column] =
            mine->widen(static_cast<uint16_t>(words[2 * (column / 8) + half] >> column % 2 * 16));
    }
  }
}

struct Agreement {
  uint64_t a, b;
};

void compare(void* const all[kLanes], uint32_t) {
  const auto* first = static_cast<const Agreement*>(all[0]);
  for (int lane = 1; lane < kLanes; ++lane) {
    const auto* other = static_cast<const Agreement*>(all[lane]);
    if (other->a != first->a || other->b != first->b) fail("lanes multiply different matrices");
  }
}

void compute(const Product& product) {
  const int lane = lane_index(), row = thread_index() % kGroupOfWarps / kLanes * 16 + lane / 4;
  const unsigned char* shared = of_block().fenced.data();
  float left[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k)
      left[half][k] = product.registers
                          ? product.rows[half][k]
                          : matrix_element(shared, product.a, row + 8 * half, k, product.by_columns, product.widen);
  for (int n = 0; n < product.columns / 8; ++n)
    for (int odd = 0; odd < 2; ++odd) {
      float right[16];
      for (int k = 0; k < 16; ++k)
        right[k] = matrix_element(shared, product.b, 8 * n + lane % 4 * 2 + odd, k, product.by_rows, product.widen);
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += left[half][k] * right[k];
        float& c = product.sums[4 * n + 2 * half + odd];
        c = product.add ? c + sum : sum;
      }
    }
}

}  // namespace

void initialise_barrier(void* barrier, uint32_t arrivals) {
  BarrierState state;
  state.arrivals = state.missing = arrivals;
  of_block().barriers[barrier] = state;
}

void arrive_at_barrier(void* barrier, uint32_t bytes) {
  BarrierState& state = state_of(barrier);
  if (state.missing == 0) fail("more arrivals than a barrier expects");
  state.bytes_missing += bytes;
  --state.missing;
  settle(state, !state.waiting.empty());
}

void wait_at_barrier(void* barrier, uint32_t phase) {
  BarrierState& state = state_of(barrier);
  settle(state, !state.copies.empty());
  while (state.phase % 2 == phase % 2) {
    state.waiting.push_back(thread_index());
    sleep();
  }
}

namespace {

void copy_later(Copy copy, void* barrier) {
  BarrierState& state = state_of(barrier);
  const auto bytes = static_cast<size_t>(copy.bytes);
  if (std::memcmp(fenced_at(copy.shared), copy.shared, bytes)) fail("a copy over what was written without a fence");
  std::memset(copy.shared, 0xff, bytes);
  std::memset(fenced_at(copy.shared), 0xff, bytes);
  state.copies.push_back(copy);
  settle(state, !state.waiting.empty());
}

}  // namespace

void copy_box(void* shared, const TensorMap& map, void* barrier, const int (&place)[4]) {
  if (fastssl::cuda::shared_address(shared) % 1024) fail("a box at an address that is no multiple of 1024");
  copy_later({static_cast<unsigned char*>(shared),
              int64_t{map.box_rows} * kBoxRowBytes,
              nullptr,
              map,
              {place[0], place[1], place[2], place[3]}},
             barrier);
}

void copy_bytes(void* shared, const void* global, uint32_t bytes, void* barrier) {
  if (bytes % 16) fail("a number of bytes that is no multiple of 16");
  copy_later(
      {aligned(static_cast<unsigned char*>(shared)), bytes, aligned(static_cast<const unsigned char*>(global)), {}, {}},
      barrier);
}

void meet_named(int id, int count, bool waits) {
  if (id < 1 || id > 15) fail("a named barrier that does not exist");
  NamedBarrier& barrier = of_block().named[id];
  if (barrier.arrived == 0) barrier.threads = count;
  if (barrier.threads != count) fail("threads expect different numbers at a named barrier");
  if (++barrier.arrived < count) {
    if (!waits) return;
    barrier.waiting.push_back(thread_index());
    return sleep();
  }
  barrier.arrived = 0;
  wake_all(barrier.waiting);
}

// It serves what other threads have written too: in some orders of the threads that hides one that has no fence.
void fence_for_async() {
  of_block().fenced.assign(dynamic_shared(), dynamic_shared() + dynamic_shared_bytes());
}

void multiply_later(float* sums, int columns, LeftOperand a, uint64_t b, bool by_rows, bool add,
                    float (*widen)(uint16_t)) {
  Thread& thread = this_thread();
  if (!thread.fenced) fail("a product without a fence since products were waited for");
  if (b >> 62 != 1 || (!a.registers && a.matrix >> 62 != 1)) fail("a matrix without its way of changing places");
  Agreement agreement{a.matrix, b};
  meet_lanes(kAllLanes, &agreement, compare);
  Product product{sums,  columns, thread.groups_committed, a.registers, {}, a.by_columns, by_rows, add, {}, a.matrix, b,
                  widen, {}};
  if (a.registers) {
    product.given = *a.registers;
    LeftRows left{a.registers, widen, {}};
    meet_lanes(kAllLanes, &left, gather_rows);
    std::memcpy(product.rows, left.rows, sizeof left.rows);
  }
  const bool continues = std::any_of(thread.products.begin(), thread.products.end(),
                                     [&](const Product& other) { return other.sums == sums; });
  if (!continues) product.before.assign(sums, sums + columns / 2);
  std::fill_n(sums, columns / 2, std::numeric_limits<float>::quiet_NaN());
  thread.products.push_back(std::move(product));
}

void fence_products() {
  this_thread().fenced = true;
}

void commit_products() {
  Thread& thread = this_thread();
  ++thread.groups_committed;
}

void wait_for_products(int groups_under_way) {
  Thread& thread = this_thread();
  const int done = thread.groups_committed - groups_under_way;
  thread.fenced = false;  // what it waited for is in registers now, and will be used
  while (!thread.products.empty() && thread.products.front().group < done) {
    const Product product = std::move(thread.products.front());
    thread.products.erase(thread.products.begin());
    if (product.registers && std::memcmp(product.registers, &product.given, sizeof product.given))
      fail("an operand that was written before its product was waited for");
    std::copy(product.before.begin(), product.before.end(), product.sums);
    compute(product);
    const auto next = std::find_if(thread.products.begin(), thread.products.end(),
                                   [&](const Product& other) { return other.sums == product.sums; });
    if (next != thread.products.end()) next->before.assign(product.sums, product.sums + product.columns / 2);
  }
}

}  // namespace cuda_on_host
