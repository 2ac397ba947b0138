// Which kernels this machine can run.
#include <cstdlib>
#include <string>

#include "node.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gr {

std::vector<Kernels const*> availableKernels() {
  std::vector<Kernels const*> found{&plainKernels};
#if defined(__x86_64__)
  // By CPUID itself: what compilers offer for it says no to everything where another compiler's runtime library is linked.
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_max(0, nullptr) < 7) return found;
  __cpuid(1, a, b, c, d);
  uint32_t const first = 1U << 27 | 1U << 12 | 1U << 29 | 1U << 28;  // OSXSAVE, FMA, F16C, AVX
  if ((c & first) != first) return found;
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // which registers the operating system keeps
  __cpuid_count(7, 0, a, b, c, d);
  if ((low & 0x6) != 0x6 || (b & 1U << 5) == 0) return found;
  found.push_back(&avx2Kernels);
  uint32_t const needed = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;  // AVX512 F, DQ, BW, VL
  if ((low & 0xe6) == 0xe6 && (b & needed) == needed) found.push_back(&avx512Kernels);
#endif
  return found;
}

Kernels const& kernels() {
  static Kernels const& chosen = [&]() -> Kernels const& {
    std::vector<Kernels const*> const available = availableKernels();
    char const* const wish = std::getenv("GR_ML_INFRA_ONNXRUNTIME_INSTRUCTIONS");
    if (wish == nullptr || *wish == '\0') return *available.back();
    std::string names;
    for (Kernels const* one : available) {
      if (std::string(one->name) == wish) return *one;
      names += (names.empty() ? "" : ", ") + std::string(one->name);
    }
    throw Refusal("GR_ML_INFRA_ONNXRUNTIME_INSTRUCTIONS is '" + std::string(wish) + "'; this machine has " + names);
  }();
  return chosen;
}

}  // namespace gr
