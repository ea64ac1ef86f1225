#include "isa.h"

#include <algorithm>
#include <array>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
#if defined(RUSHLIGHT_HAS_AMX)
RUSHLIGHT_DECLARE(amx)
#endif
#endif

namespace {

constexpr std::array<std::string_view, 5> kNames = {"amx", "avx512vnni", "avx512", "avx2", "portable"};

#if defined(RUSHLIGHT_HAS_AMX)
// Whether the processor has tile registers for bf16, and the system lets this process use them. Linux grants that to
// processes that ask, and to all their threads.
bool amx_is_usable() {
#if defined(RUSHLIGHT_EMULATE)
  return true;
#elif defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool usable =
      __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return usable;
#else
  return false;
#endif
}
#endif

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
#if defined(RUSHLIGHT_HAS_AMX)
  if (vnni && amx_is_usable()) found.push_back(&amx::kKernels);
#endif
  if (vnni) found.push_back(&avx512vnni::kKernels);
  if (avx512) found.push_back(&avx512::kKernels);
  if (avx2) found.push_back(&avx2::kKernels);
#endif
  found.push_back(&portable::kKernels);
  return found;
}

}  // namespace rushlight
