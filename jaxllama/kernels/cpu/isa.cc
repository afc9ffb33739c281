#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if JAXLLAMA_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "library.h"

namespace jaxllama {
namespace {

#if JAXLLAMA_AMX
bool has_amx() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & (1u << 27)) == 0) return false;  // OSXSAVE
  unsigned saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((saved & kTileState) != kTileState) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  return (edx & (kBf16 | kTile | kInt8)) == (kBf16 | kTile | kInt8);
}

// Asks the operating system for the use of tiles in this process.
bool may_use_amx() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

// Whether the processor has tiles that the operating system does not let this process use.
bool tiles_are_refused = false;

bool can_run(Isa wanted) {
#if JAXLLAMA_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#if JAXLLAMA_AMX
  if (wanted == Isa::amx) {
    if (!avx512 || !has_amx()) return false;
    tiles_are_refused = !may_use_amx();
    return !tiles_are_refused;
  }
#endif
  if (wanted == Isa::avx512) return avx512;
  if (wanted == Isa::avx2) return avx2;
#endif
  return wanted == Isa::portable || wanted == Isa::emulated;
}

Isa best() {
  if (can_run(Isa::amx)) return Isa::amx;
  if (can_run(Isa::avx512)) return Isa::avx512;
  return can_run(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

struct Choice {
  Isa isa;
  const char* complaint;  // null if there is no error
};

bool named(const char* name, Isa* isa) {
  for (Isa each : {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx, Isa::emulated}) {
    if (std::strcmp(name, isa_name(each)) == 0) {
      *isa = each;
      return true;
    }
  }
  return false;
}

Choice choose() {
  const char* forced = std::getenv("JAXLLAMA_ISA");
  if (forced == nullptr || *forced == '\0') return {best(), nullptr};
  Isa wanted = Isa::portable;
  if (!named(forced, &wanted)) {
    return {best(), "JAXLLAMA_ISA must be portable, avx2, avx512 or amx"};
  }
  if (!can_run(wanted)) {
    return {best(), "JAXLLAMA_ISA names instructions this processor does not have"};
  }
  return {wanted, nullptr};
}

Choice& choice() {
  static Choice chosen = choose();
  return chosen;
}

}  // namespace

Isa isa() { return choice().isa; }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::emulated:
      return "emulated";
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace jaxllama

JAXLLAMA_EXPORT const char* jaxllama_isa() { return jaxllama::isa_name(jaxllama::isa()); }

JAXLLAMA_EXPORT const char* jaxllama_complaint() { return jaxllama::choice().complaint; }

// Says whether AVX-512 is used because the operating system refuses the tiles of AMX.
JAXLLAMA_EXPORT int jaxllama_tiles_are_refused() { return jaxllama::tiles_are_refused ? 1 : 0; }

// Selects an instruction set, for tests; no kernel may be running. Returns 0 and changes nothing if
// this processor or build lacks it.
JAXLLAMA_EXPORT int jaxllama_set_isa(const char* name) {
  jaxllama::Isa wanted;
  if (!jaxllama::named(name, &wanted) || !jaxllama::can_run(wanted)) return 0;
  jaxllama::choice().isa = wanted;
  return 1;
}
