// Which instruction set the kernels use: chosen once, when the library is loaded.
//
// Each family of kernels has one implementation per instruction set, in its own file and namespace
// (portable, avx2, avx512). Matmul and the attention of prompts have one for AMX, too; everything else
// uses AVX-512 there. Files compiled for an instruction set use no standard templates and no inline
// functions of shared headers, members of their classes included: the linker keeps one copy of an
// inline function, and it must not keep a copy that an older processor cannot run.
#pragma once

namespace jaxllama {

// `emulated` is the code for AMX over plain C++, and plain C++ for everything else: for tests.
enum class Isa { portable, avx2, avx512, amx, emulated };

// Returns the instruction set in use. JAXLLAMA_ISA=portable|avx2|avx512|amx forces one.
Isa isa();
const char* isa_name(Isa isa);

[[maybe_unused]] static bool has_avx512(Isa isa) { return isa == Isa::avx512 || isa == Isa::amx; }

}  // namespace jaxllama

// Selects the kernels of the instruction set in use, for example avx512::matmul_ops for matmul_ops.
#if JAXLLAMA_X86
#define JAXLLAMA_PICK(name)                                      \
  (::jaxllama::has_avx512(::jaxllama::isa()) ? avx512::name      \
   : ::jaxllama::isa() == ::jaxllama::Isa::avx2 ? avx2::name     \
                                                : portable::name)
#else
#define JAXLLAMA_PICK(name) (portable::name)
#endif
