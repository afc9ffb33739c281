#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "library.h"

namespace jaxllama {
namespace {

bool can_run(Isa wanted) {
#if JAXLLAMA_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (wanted == Isa::avx512) return avx512;
  if (wanted == Isa::avx2) return avx2;
#endif
  return wanted == Isa::portable;
}

Isa best() {
  if (can_run(Isa::avx512)) return Isa::avx512;
  return can_run(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

struct Choice {
  Isa isa;
  const char* complaint;  // null if there is no error
};

bool named(const char* name, Isa* isa) {
  for (Isa each : {Isa::portable, Isa::avx2, Isa::avx512}) {
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
    return {best(), "JAXLLAMA_ISA must be portable, avx2 or avx512"};
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
  if (isa == Isa::avx512) return "avx512";
  return isa == Isa::avx2 ? "avx2" : "portable";
}

}  // namespace jaxllama

JAXLLAMA_EXPORT const char* jaxllama_isa() { return jaxllama::isa_name(jaxllama::isa()); }

JAXLLAMA_EXPORT const char* jaxllama_complaint() { return jaxllama::choice().complaint; }

// Selects an instruction set, for tests; no kernel may be running. Returns 0 and changes nothing if
// this processor or build lacks it.
JAXLLAMA_EXPORT int jaxllama_set_isa(const char* name) {
  jaxllama::Isa wanted;
  if (!jaxllama::named(name, &wanted) || !jaxllama::can_run(wanted)) return 0;
  jaxllama::choice().isa = wanted;
  return 1;
}
