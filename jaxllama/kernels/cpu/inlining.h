// How loops and functions of kernels with vector registers are compiled.
#pragma once

// Precedes short loops whose arrays must stay in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))
