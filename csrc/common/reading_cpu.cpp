#include "common/reading.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

uint32_t sum_of_words(const uint32_t* words, int64_t count) {
  constexpr int kVectors = 8;
  constexpr int64_t kAhead = 1024, kLine = 16;  // words
  VecU sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) {
    for (int64_t line = 0; line < kVectors * kLanes; line += kLine) __builtin_prefetch(words + i + line + kAhead, 0, 3);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      VecU vector;
      std::memcpy(&vector, words + i + v * kLanes, sizeof vector);
      sums[v] += vector;
    }
  }
  uint32_t total = 0;
  for (int v = 0; v < kVectors; ++v)
    for (int lane = 0; lane < kLanes; ++lane) total += sums[v][lane];
  for (; i < count; ++i) total += words[i];
  return total;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
