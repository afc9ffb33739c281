// Converts float16 and bfloat16, given as bits, to float32 exactly.
#pragma once

#include <stdint.h>

namespace jaxllama {

// Functions here are static: see isa.h.

[[maybe_unused]] static inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

[[maybe_unused]] static inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// After the shift, the exponent of a normal number is 112 too small. A subnormal number is
// converted as an integer: a multiplication would fail, because XLA's threads treat subnormal
// float32 as zero.
[[maybe_unused]] static inline float widen_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half & 0x7c00, mantissa = half & 0x3ff;
  if (exponent == 0) {
    return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
  }
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fff) << 13;
  return float_of(sign | (exponent == 0x7c00 ? rest | 0x7f800000 : rest + (112u << 23)));
}

[[maybe_unused]] static inline float widen_bfloat(uint16_t x) {
  return float_of(static_cast<uint32_t>(x) << 16);
}

}  // namespace jaxllama
