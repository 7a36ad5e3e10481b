// Column sums that have the same bits for every thread count: partial sums over fixed blocks of rows, added in order.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {

inline constexpr int64_t kMaxRowBlocks = 64;

// How rows fall into blocks: a matter of their number alone.
struct RowBlocks {
  int64_t rows_per_block;
  int64_t count;

  RowBlocks(int64_t rows, int64_t min_rows_per_block) : rows_per_block((rows + kMaxRowBlocks - 1) / kMaxRowBlocks) {
    if (rows_per_block < min_rows_per_block) rows_per_block = min_rows_per_block;
    count = (rows + rows_per_block - 1) / rows_per_block;
  }
};

// total[j] = (accumulate ? total[j] : 0) + the sum over blocks of partials[block, j], for columns [begin, end).
FASTSSL_DECLARE_KERNEL(void, sum_blocks, const float* partials, int64_t blocks, int64_t width, bool accumulate,
                       float* total, int64_t begin, int64_t end)

}  // namespace fastssl
