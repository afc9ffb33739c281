// Which instruction set the kernels use: chosen once, when the library is loaded.
//
// Each family of kernels has one body per instruction set, in its own file and namespace
// (portable, avx2, avx512). Files compiled for an instruction set use no standard templates and no
// inline functions of shared headers: of two copies of one inline function the linker keeps any, and
// it must not be the one an older processor cannot run.
#pragma once

namespace jaxllama {

enum class Isa { portable, avx2, avx512 };

// The one in use. JAXLLAMA_ISA=portable|avx2|avx512 forces it.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace jaxllama

// The body of a kernel for the instruction set in use: pick(matmul_ops) is avx512::matmul_ops, say.
#if JAXLLAMA_X86
#define JAXLLAMA_PICK(name)                                      \
  (::jaxllama::isa() == ::jaxllama::Isa::avx512 ? avx512::name   \
   : ::jaxllama::isa() == ::jaxllama::Isa::avx2 ? avx2::name     \
                                                : portable::name)
#else
#define JAXLLAMA_PICK(name) (portable::name)
#endif
