// Twins of csrc/cuda/hopper.cuh: barriers that count bytes, copies of boxes and products of warpgroups on a CPU.
//
// What goes on beside the threads of a GPU happens as late as the waiting for it allows: until then a box, or the sums
// of a product, is NaN, and the operands in shared memory are read when the sums are waited for. So a buffer that is
// given up too early, or sums that are read too early, give wrong results here. They meet shared memory as it was at
// the last fence_for_async(): what threads have written since is not there.
#pragma once

namespace cuda_on_host {

// The address of the dynamic shared memory, behind what the system keeps.
inline constexpr uint32_t kSharedBegin = 1024;

struct TensorMap {
  const unsigned char* data;
  int64_t sizes[4];  // columns, rows, heads, sequences
  int64_t bytes[4];  // to the next of each
  int box_rows;
};

void initialise_barrier(void* barrier, uint32_t arrivals);
void arrive_at_barrier(void* barrier, uint32_t bytes);
void wait_at_barrier(void* barrier, uint32_t phase);
void copy_box(void* shared, const TensorMap& map, void* barrier, const int (&place)[4]);
void copy_bytes(void* shared, const void* global, uint32_t bytes, void* barrier);
void meet_named(int barrier, int threads, bool waits);

// The left operand of a product: registers, or a matrix in shared memory.
struct LeftOperand {
  const uint4* registers;
  uint64_t matrix;
  bool by_columns;
};
void multiply_later(float* sums, int columns, LeftOperand a, uint64_t b, bool by_rows, bool add,
                    float (*widen)(uint16_t));
void fence_for_async();
void fence_products();
void commit_products();
void wait_for_products(int groups_under_way);

}  // namespace cuda_on_host

#define __grid_constant__

namespace fastssl::cuda {

using TensorMap = cuda_on_host::TensorMap;

inline TensorMap tensor_map(const void* data, int64_t columns, int64_t rows, int64_t heads, int64_t sequences,
                            int64_t row_distance, int64_t head_distance, int64_t sequence_distance, int box_rows) {
  const bool sizes_fit = columns > 0 && rows > 0 && heads > 0 && sequences > 0 && box_rows > 0 && box_rows <= 256;
  const auto fits = [](int64_t distance) { return distance > 0 && distance % 8 == 0 && distance < int64_t{1} << 39; };
  if (!sizes_fit || !fits(row_distance) || !fits(head_distance) || !fits(sequence_distance) ||
      reinterpret_cast<uintptr_t>(data) % 16)
    throw std::runtime_error("CUDA emulation: a tensor map that CUDA would refuse");
  return {static_cast<const unsigned char*>(data),
          {columns, rows, heads, sequences},
          {2, 2 * row_distance, 2 * head_distance, 2 * sequence_distance},
          box_rows};
}

inline uint32_t shared_address(const void* shared) {
  const auto* p = static_cast<const unsigned char*>(shared);
  return static_cast<uint32_t>(p - cuda_on_host::dynamic_shared()) + cuda_on_host::kSharedBegin;
}

inline unsigned char* shared_panels() {
  return dynamic_shared();
}

struct Barrier {
  uint64_t state;

  void initialise(uint32_t arrivals) {
    cuda_on_host::initialise_barrier(this, arrivals);
  }
  void arrive() {
    cuda_on_host::arrive_at_barrier(this, 0);
  }
  void arrive_and_expect(uint32_t bytes) {
    cuda_on_host::arrive_at_barrier(this, bytes);
  }
  void wait(uint32_t phase) {
    cuda_on_host::wait_at_barrier(this, phase);
  }
};
inline void fence_barriers() {}

inline void copy_box(void* shared, const TensorMap& map, Barrier& barrier, int column, int row, int head,
                     int sequence) {
  cuda_on_host::copy_box(shared, map, &barrier, {column, row, head, sequence});
}
inline void copy_bytes(void* shared, const void* global, uint32_t bytes, Barrier& barrier) {
  cuda_on_host::copy_bytes(shared, global, bytes, &barrier);
}
inline void prefetch(const TensorMap&) {}
inline int made_anew(int number) {
  return number;
}
inline int lane_read_anew() {
  return cuda_on_host::lane_index();
}
inline int64_t number_read_anew(const int64_t* number) {
  return *number;
}
inline void fence_for_async() {
  cuda_on_host::fence_for_async();
}

inline void wait_for_turn(const uint32_t* turns, uint32_t turn) {
  cuda_on_host::wait_until([=] { return *turns == turn; });
  __syncwarp();
}
inline void pass_turn(uint32_t* turns, uint32_t next) {
  *turns = next;
}
inline void pass_and_wait_for_turn(uint32_t* passed, uint32_t next, const uint32_t* turns, uint32_t turn) {
  if (passed) pass_turn(passed, next);
  wait_for_turn(turns, turn);
}
inline uint32_t take_number(uint32_t* taken) {
  cuda_on_host::let_other_blocks_run();
  return (*taken)++;
}
inline void add_in_memory(float4* numbers, const float (&values)[4]) {
  float4& sums = *cuda_on_host::aligned(numbers);
  sums = {sums.x + values[0], sums.y + values[1], sums.z + values[2], sums.w + values[3]};
}
inline float4 load_from_others(const float4* numbers) {
  return *cuda_on_host::aligned(numbers);
}

inline void meet(int barrier, int threads) {
  cuda_on_host::meet_named(barrier, threads, true);
}
inline void arrive_at(int barrier, int threads) {
  cuda_on_host::meet_named(barrier, threads, false);
}

template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_up_registers() {}

inline void fence_products() {
  cuda_on_host::fence_products();
}
inline void commit_products() {
  cuda_on_host::commit_products();
}
template <int kGroupsUnderWay>
void wait_for_products() {
  cuda_on_host::wait_for_products(kGroupsUnderWay);
}
template <int kColumns>
void take(Sums<1, kColumns>&) {}

template <class T>
auto widening_of() {
  return std::is_same_v<T, Half> ? cuda_on_host::half_to_float : cuda_on_host::bfloat16_to_float;
}
template <class T, bool kByRows, int kColumns>
void multiply_async(Sums<1, kColumns>& c, const uint4& a, SharedMatrix b, bool add) {
  cuda_on_host::multiply_later(&c.at[0][0][0], kColumns, {&a, 0, false}, b.bits, kByRows, add, widening_of<T>());
}
template <class T, bool kByColumns, bool kByRows, int kColumns>
void multiply_async(Sums<1, kColumns>& c, SharedMatrix a, SharedMatrix b, bool add) {
  cuda_on_host::multiply_later(&c.at[0][0][0], kColumns, {nullptr, a.bits, kByColumns}, b.bits, kByRows, add,
                               widening_of<T>());
}

}  // namespace fastssl::cuda
