// The dtypes that elementwise kernels read and write; their arithmetic is float32.
#pragma once

#include <cstdint>

namespace fastssl {

enum class Element : int32_t { float32, bfloat16, float16 };

}  // namespace fastssl
