#include "isa.h"

#include <algorithm>
#include <array>

namespace rushlight {

#define RUSHLIGHT_DECLARE(isa) \
  namespace isa {              \
  extern const Kernels kKernels; \
  }

RUSHLIGHT_DECLARE(portable)
#if defined(RUSHLIGHT_HAS_X86)
RUSHLIGHT_DECLARE(avx2)
RUSHLIGHT_DECLARE(avx512)
RUSHLIGHT_DECLARE(avx512vnni)
#endif

namespace {

constexpr std::array<std::string_view, 4> kNames = {"avx512vnni", "avx512", "avx2", "portable"};

}  // namespace

bool is_instruction_set(std::string_view name) { return std::ranges::find(kNames, name) != kNames.end(); }

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(RUSHLIGHT_HAS_X86)
  // The compiler's runtime checks the processor, and that the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(RUSHLIGHT_EMULATE)
  const bool avx512 = avx2, vnni = avx2;  // the instructions that they are compiled to
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
  if (vnni) found.push_back(&avx512vnni::kKernels);
  if (avx512) found.push_back(&avx512::kKernels);
  if (avx2) found.push_back(&avx2::kKernels);
#endif
  found.push_back(&portable::kKernels);
  return found;
}

}  // namespace rushlight
