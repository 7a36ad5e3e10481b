#include "common/cpu_capability.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <string>

#ifdef FASTSSL_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

const bool has_vnni = find_vnni();

bool find_amx() {
#if defined(FASTSSL_X86) && defined(__linux__)
  constexpr unsigned kLeaf = 7, kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // bits of edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  unsigned eax, ebx, ecx, edx;
  if (!has_vnni || !__get_cpuid_count(kLeaf, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kBfloat16) == 0 || (edx & kTile) == 0 || (edx & kInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const CpuCapability best = best_capability();
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

bool machine_has_amx() {
  static const bool found = find_amx();
  return found;
}

}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fastssl::capability_name));
  m.impl("set_cpu_capability", TORCH_BOX(&fastssl::set_capability));
}
