// Converts floats to the narrow numbers of the cache: to nearest, ties to even, NaN stays NaN.
//
// All instruction sets append with these functions, so that they store the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace jaxllama {
namespace {

struct Bf16 {
  std::uint16_t bits;
};

struct Half {
  std::uint16_t bits;
};

inline std::uint16_t bf16_bits(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : nearest);
}

inline std::uint16_t half_bits(float x) {
  const std::uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and more
  if (size < 0x38800000) {  // below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits
    return static_cast<std::uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
  }
  const std::uint32_t rounded = size + 0xfff + ((size >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

inline void narrow(const float* from, std::int64_t count, Bf16* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i].bits = bf16_bits(from[i]);
}

inline void narrow(const float* from, std::int64_t count, Half* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i].bits = half_bits(from[i]);
}

inline void narrow(const float* from, std::int64_t count, float* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}

// Returns the scale: the largest magnitude / 127, or NaN if the vector is not finite.
inline float quantise(const float* from, std::int64_t count, std::int8_t* to) {
  float largest = 0.0f, poison = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float size = from[i] < 0.0f ? -from[i] : from[i];
    largest = size > largest ? size : largest;
    poison += from[i] * 0.0f;
  }
  const float scale = largest / 127.0f + poison;
  // If the scale is too small to divide by, the numbers are negligible and stored as 0.
  const float inverse = scale > 1e-37f ? 1.0f / scale : 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    constexpr float middle = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float whole = (from[i] * inverse + middle) - middle;
    to[i] = inverse > 0.0f ? static_cast<std::int8_t>(whole) : std::int8_t{0};
  }
  return scale;
}

}  // namespace
}  // namespace jaxllama
