// The fibers behind cuda_on_host.h, and what tests set about them.
#if defined(__APPLE__)
#define _XOPEN_SOURCE 700  // or there is no ucontext.h
#define _DARWIN_C_SOURCE
#endif

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/platform.cuh"

namespace cuda_on_host {

void remember(const char* what);

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating type
constexpr unsigned char kGuard = 0xa5;

// A thread of a block. Its context is made once and serves block after block.
struct Fiber {
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    int group;
  };

  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  ucontext_t context;
  jmp_buf resume_point;
  bool started = false, finished = false, waiting = false;
  const std::function<bool()>* condition = nullptr;  // of going on, which another block may fulfil
  std::vector<Copy> copies;
  int groups_committed = 0;
};

// Lanes of one warp that wait for each other, told apart by the lowest lane of their mask.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Resolve resolve = nullptr;
  void* operands[kLanes];
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned> order;    // in which they run
  std::vector<Meeting> meetings;  // (warp, lowest lane)
  std::vector<unsigned char> shared;
  unsigned char* shared_begin = nullptr;
  size_t shared_bytes = 0;
  uint3 index{};
  int threads = 0, current = 0, unfinished = 0;
  int arrived = 0, true_arrived = 0, true_last_time = 0;  // at the barrier of the block
};

struct Watcher {
  void (*begin)(int threads);
  const char* (*end)();
};

std::vector<std::unique_ptr<Block>> blocks;  // those that run at the same time, and those that are to be used again
Block* block = nullptr;                      // the one that runs
const std::function<void()>* running_kernel = nullptr;
std::string error;
jmp_buf scheduler;
uint64_t rounds = 0;  // in which each block that runs was given its turn
bool paused = false;  // whether a block lets others run, and could go on

std::vector<Watcher>& watchers() {
  static std::vector<Watcher> all;  // they come from other files, in any order
  return all;
}
std::string remembered;
unsigned order_seed = 0;  // 0: threads and blocks run in the order of their index

Fiber& self() {
  return *block->fibers[static_cast<size_t>(block->current)];
}

// glibc's swapcontext asks the kernel for the signal mask each time: it only starts a fiber, and jumps do the rest.
__attribute__((noinline)) void back_to_scheduler() {
  if (_setjmp(self().resume_point) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*running_kernel)();
    self().finished = true;
    back_to_scheduler();
  }
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume_point, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  setcontext(&fiber.context);
}

void wait() {
  self().waiting = true;
  while (self().waiting) back_to_scheduler();
}

void set_index(int thread, dim3 threads) {
  const unsigned index = static_cast<unsigned>(thread);
  threadIdx = {index % threads.x, index / threads.x % threads.y, index / threads.x / threads.y};
}

std::vector<unsigned> order_of(unsigned count, unsigned salt) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (order_seed) std::shuffle(order.begin(), order.end(), std::mt19937(order_seed + salt));
  return order;
}

[[noreturn]] void report(const std::string& what) {
  const std::string where = "block " + std::to_string(block->index.x) + ", " + std::to_string(block->index.y) + ", " +
                            std::to_string(block->index.z) + ", thread " + std::to_string(block->current);
  blocks.clear();  // some threads are in the middle of the kernel
  throw std::runtime_error("CUDA emulation: " + what + " (" + where + ")");
}

void begin_block(uint3 index, int threads, size_t shared_bytes, unsigned salt) {
  block->index = index;
  block->threads = block->unfinished = threads;
  while (static_cast<int>(block->fibers.size()) < threads) block->fibers.push_back(std::make_unique<Fiber>());
  block->order = order_of(static_cast<unsigned>(threads), salt);
  block->shared.assign(shared_bytes + 2 * kGuardBytes, kGuard);
  const auto begin = reinterpret_cast<uintptr_t>(block->shared.data()) + kGuardBytes / 2;
  block->shared_begin = reinterpret_cast<unsigned char*>((begin + 127) / 128 * 128);
  block->shared_bytes = shared_bytes;
  std::fill_n(block->shared_begin, shared_bytes, kPoison);
  block->meetings.assign(static_cast<size_t>(threads + kLanes), {});
  block->arrived = block->true_arrived = 0;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *block->fibers[static_cast<size_t>(i)];
    fiber.finished = fiber.waiting = false;
    fiber.condition = nullptr;
    fiber.copies.clear();
    fiber.groups_committed = 0;
  }
  for (const Watcher& watcher : watchers()) watcher.begin(threads);
}

// Lets the block's threads run until all have ended or only another block can help; whether any of them ran.
bool advance_block(dim3 threads) {
  blockIdx = block->index;
  for (bool any = false;; any = true) {
    bool progress = false;
    for (const unsigned i : block->order) {
      Fiber& fiber = *block->fibers[i];
      if (fiber.finished || fiber.waiting || (fiber.condition && !(*fiber.condition)())) continue;
      progress = true;
      block->current = static_cast<int>(i);
      set_index(block->current, threads);
      resume(fiber);
      if (!error.empty()) report(error);
      block->unfinished -= fiber.finished;
    }
    if (!progress || block->unfinished == 0) return any || progress;
  }
}

void end_block() {
  for (const Watcher& watcher : watchers())
    if (const char* what = watcher.end()) report(what);
  const unsigned char *begin = block->shared_begin, *end = begin + block->shared_bytes;
  for (const unsigned char& byte : block->shared)
    if ((&byte < begin || &byte >= end) && byte != kGuard) report("a write outside the dynamic shared memory");
}

}  // namespace

// A block begins when all that run have to wait for others.
void run(dim3 grid, dim3 threads, size_t shared_bytes, Start start, const std::function<void()>& kernel) {
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > 1024) throw std::runtime_error("CUDA emulation: block size");
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("CUDA emulation: grid size");
  const fastssl::cuda::DeviceLimits limits = fastssl::cuda::limits_of(0);
  if (shared_bytes > static_cast<size_t>(limits.shared_bytes_per_block))
    throw std::runtime_error("CUDA emulation: more shared memory than the device has");
  running_kernel = &kernel;
  error.clear();
  blockDim = threads;
  gridDim = grid;
  const unsigned total = grid.x * grid.y * grid.z;
  const unsigned at_once = start == Start::apart ? 1 : static_cast<unsigned>(limits.multiprocessors);
  if (start == Start::together && total > at_once)
    throw std::runtime_error("CUDA emulation: more blocks than run at the same time");
  const std::vector<unsigned> order = order_of(total, 0);
  unsigned begun = 0;
  for (size_t running = 0; begun < total || running > 0;) {
    bool progress = false;
    ++rounds;
    for (size_t i = 0; i < running;) {
      block = blocks[i].get();
      progress |= advance_block(threads);
      if (block->unfinished > 0) {
        ++i;
        continue;
      }
      end_block();
      std::swap(blocks[i], blocks[--running]);
    }
    const bool can_begin = begun < total && running < at_once;
    if (running > 0 && progress && !(paused && can_begin)) continue;
    paused = false;
    if (running > 0 && (begun == total || running == at_once)) report("threads wait for others that never come");
    if (begun == total) break;
    if (blocks.size() == running) blocks.push_back(std::make_unique<Block>());
    block = blocks[running++].get();
    const unsigned i = order[begun++];
    begin_block({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y}, static_cast<int>(count), shared_bytes, begun);
  }
}

void fail(const char* what) {
  error = what;
  _longjmp(scheduler, 1);
}

unsigned char* dynamic_shared() {
  return block->shared_begin;
}

size_t dynamic_shared_bytes() {
  return block->shared_bytes;
}

int thread_index() {
  return block->current;
}

void sleep() {
  wait();
}

void wait_until(const std::function<bool()>& condition) {
  self().condition = &condition;
  while (!condition()) back_to_scheduler();
  self().condition = nullptr;
}

void let_other_blocks_run() {
  paused = true;
  wait_until([round = rounds] { return rounds != round; });
}

const void* this_block() {
  return block;
}

void wake(int thread) {
  block->fibers[static_cast<size_t>(thread)]->waiting = false;
}

void watch_blocks(void (*begin)(int threads), const char* (*end)()) {
  watchers().push_back({begin, end});
}

int lane_index() {
  return block->current % kLanes;
}

int meet_block(bool predicate) {
  block->true_arrived += predicate;
  if (++block->arrived < block->threads) {
    wait();
    return block->true_last_time;
  }
  block->true_last_time = block->true_arrived;
  block->arrived = block->true_arrived = 0;
  for (int i = 0; i < block->threads; ++i) block->fibers[static_cast<size_t>(i)]->waiting = false;
  return block->true_last_time;
}

void meet_lanes(uint32_t mask, void* operands, Resolve resolve) {
  const int lane = lane_index(), warp_begin = block->current - lane;
  if (!(mask >> lane & 1)) fail("a lane calls a warp's instruction with a mask that leaves it out");
  int lowest = 0;
  while (!(mask >> lowest & 1)) ++lowest;
  Meeting& meeting = block->meetings[static_cast<size_t>(warp_begin + lowest)];
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.resolve = resolve;
  }
  if (meeting.mask != mask || meeting.resolve != resolve) fail("lanes of a warp meet in different instructions");
  meeting.operands[lane] = operands;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived != mask) return wait();
  meeting.arrived = 0;
  resolve(meeting.operands, mask);
  for (int i = 0; i < kLanes; ++i)
    if (mask >> i & 1) block->fibers[static_cast<size_t>(warp_begin + i)]->waiting = false;
}

namespace {

struct Vote {
  bool predicate;
  uint32_t result;
};

void count_votes(void* const all[kLanes], uint32_t mask) {
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1 && static_cast<Vote*>(all[lane])->predicate) result |= 1u << lane;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) static_cast<Vote*>(all[lane])->result = result;
}

}  // namespace

uint32_t ballot(uint32_t mask, bool predicate) {
  Vote vote{predicate, 0};
  meet_lanes(mask, &vote, count_votes);
  return vote.result;
}

void copy_later(void* to, const void* from, size_t bytes) {
  std::memset(to, kPoison, bytes);
  self().copies.push_back({to, from, bytes, self().groups_committed});
}

void commit_copies() {
  ++self().groups_committed;
}

void wait_for_copies(int groups_under_way) {
  Fiber& fiber = self();
  const int done = fiber.groups_committed - groups_under_way;
  for (const Fiber::Copy& copy : fiber.copies)
    if (copy.group < done) std::memcpy(copy.to, copy.from, copy.bytes);
  std::erase_if(fiber.copies, [&](const Fiber::Copy& copy) { return copy.group < done; });
}

float bfloat16_to_float(uint16_t x) {
  return bits<float>(static_cast<uint32_t>(x) << 16);
}

uint16_t float_to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t b = bits<uint32_t>(x);
  return static_cast<uint16_t>((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

namespace {

float computed_half_to_float(uint16_t x) {
  const float sign = x & 0x8000 ? -1.0f : 1.0f;
  const int exponent = x >> 10 & 31;
  const float fraction = static_cast<float>(x & 1023);
  if (exponent == 31) return fraction != 0.0f ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024.0f, exponent - 25));
}

const std::vector<float> all_halves = [] {
  std::vector<float> all(65536);
  for (size_t x = 0; x < all.size(); ++x) all[x] = computed_half_to_float(static_cast<uint16_t>(x));
  return all;
}();

}  // namespace

float half_to_float(uint16_t x) {
  return all_halves[x];
}

uint16_t float_to_half(float x) {
  if (std::isnan(x)) return 0x7fff;
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // what rounds to 65536 is infinite
  if (magnitude == 0.0f) return sign;
  // The unit in the last place is 2^(exponent - 11), and 2^-24 below the normal numbers; nearbyint ties to even.
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = std::max(exponent, -13);
  const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return static_cast<uint16_t>(sign | (static_cast<unsigned>(exponent + 13) * 1024 + units));
}

void remember(const char* what) {
  if (remembered.empty()) remembered = what;
}

}  // namespace cuda_on_host

namespace {
fastssl::cuda::DeviceLimits limits{3, 227 * 1024, 228 * 1024};
}

fastssl::cuda::DeviceLimits fastssl::cuda::limits_of(int) {
  return limits;
}

#define FASTSSL_EXPORT extern "C" __attribute__((visibility("default")))

// 0 runs threads and blocks by index; another number, in an order drawn from it.
FASTSSL_EXPORT void set_thread_order(unsigned seed) {
  cuda_on_host::order_seed = seed;
}

FASTSSL_EXPORT void set_device_limits(int multiprocessors, int shared_bytes_per_block) {
  limits = {multiprocessors, shared_bytes_per_block, shared_bytes_per_block + 1024};
}

// The first error that was remembered since the last call, or an empty string.
FASTSSL_EXPORT const char* remembered_error() {
  static std::string last;
  last = std::exchange(cuda_on_host::remembered, {});
  return last.c_str();
}
