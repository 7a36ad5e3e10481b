// Which compiled copy of the CPU kernels runs on this machine.
#pragma once

#include <cstdint>

namespace fastssl {

enum class CpuCapability : int32_t { generic = 0, avx2 = 1, avx512 = 2 };

// The best instruction set of this machine, unless a test has asked for a lower one.
CpuCapability cpu_capability();

// Whether the machine has AVX-512's dot products of bytes, whatever the instruction set in force.
bool machine_has_vnni();

// Whether it has the tiles of AMX as well, for bytes and bfloat16, and the system lets this process use them: the first
// call asks.
bool machine_has_amx();

}  // namespace fastssl

// Declares a kernel once per instruction set; `...` is its parameter list.
// The definitions come from one source, compiled once per set inside its namespace.
#ifdef FASTSSL_X86
#define FASTSSL_DECLARE_KERNEL(result, name, ...) \
  namespace generic {                             \
  result name(__VA_ARGS__);                       \
  }                                               \
  namespace avx2 {                                \
  result name(__VA_ARGS__);                       \
  }                                               \
  namespace avx512 {                              \
  result name(__VA_ARGS__);                       \
  }

// The function pointer of a kernel for the instruction set in force.
#define FASTSSL_KERNEL(name)                                                      \
  (::fastssl::cpu_capability() == ::fastssl::CpuCapability::avx512 ? avx512::name \
   : ::fastssl::cpu_capability() == ::fastssl::CpuCapability::avx2 ? avx2::name   \
                                                                   : generic::name)
#else
#define FASTSSL_DECLARE_KERNEL(result, name, ...) \
  namespace generic {                             \
  result name(__VA_ARGS__);                       \
  }
#define FASTSSL_KERNEL(name) (generic::name)
#endif
