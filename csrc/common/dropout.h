// A dropout request as the kernels take it.
#pragma once

#include <cstdint>

namespace fastssl {

// threshold = round(p * 65536); a 16-bit random element below it is dropped.
struct Dropout {
  uint32_t threshold = 0;  // 0: no dropout
  float scale = 1.0f;      // 65536 / (65536 - threshold)
  uint32_t key_0 = 0;      // low half of the 64-bit seed
  uint32_t key_1 = 0;
};

}  // namespace fastssl
