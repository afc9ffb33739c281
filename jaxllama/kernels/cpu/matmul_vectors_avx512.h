// Vectors of sixteen floats with AVX-512: what only the matmul kernels need.
//
// Included by matmul_avx512.cc and matmul_amx.cc inside their own unnamed namespaces: see isa.h.

#include "vectors_avx512.h"

inline Vec zero() { return _mm512_setzero_ps(); }

inline Vec load_half(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Vec load_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

inline Vec load_signed(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
