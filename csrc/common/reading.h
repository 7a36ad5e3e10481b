// Reads memory as fast as it can be read: what operators are measured by that do little else.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fastssl {

// The sum, modulo 2^32, of `count` words.
FASTSSL_DECLARE_KERNEL(uint32_t, sum_of_words, const uint32_t* words, int64_t count)

}  // namespace fastssl
