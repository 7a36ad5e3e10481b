#include "common/cpu_capability.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <string>

namespace fastssl {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512"};

CpuCapability best_capability() {
#ifdef FASTSSL_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return CpuCapability::avx512;
  if (avx2) return CpuCapability::avx2;
#endif
  return CpuCapability::generic;
}

bool find_vnni() {
#ifdef FASTSSL_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const CpuCapability best = best_capability();
const bool has_vnni = find_vnni();
std::atomic<CpuCapability> current{best};

std::string capability_name() {
  return kNames[static_cast<int>(cpu_capability())];
}

void set_capability(std::string name) {
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (name == kNames[i]) {
      current.store(static_cast<CpuCapability>(i));
      return;
    }
  }
  STD_TORCH_CHECK(false, "set_cpu_capability: this machine and build offer up to '", kNames[static_cast<int>(best)],
                  "', not '", name, "'");
}

}  // namespace

CpuCapability cpu_capability() {
  return current.load(std::memory_order_relaxed);
}

bool machine_has_vnni() {
  return has_vnni;
}

}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fastssl::capability_name));
  m.impl("set_cpu_capability", TORCH_BOX(&fastssl::set_capability));
}
