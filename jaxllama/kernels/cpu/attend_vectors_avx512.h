// Vectors of sixteen floats with AVX-512: what only attention needs.
//
// Included by attend_avx512.cc and attend_amx.cc inside their own unnamed namespaces: see isa.h.

#include "vectors_avx512.h"

constexpr int TILE_VECTORS = 4;  // with six rows: twenty-four sums, in thirty-two registers

inline float first(Vec x) { return _mm512_cvtss_f32(x); }
// Keeps lanes from..to-1 of x and sets the others to `fill`.
inline Vec keep(Vec x, std::int64_t from, std::int64_t to, float fill) {
  const auto below = [](std::int64_t lane) {
    return lane <= 0 ? 0u : lane >= WIDTH ? 0xffffu : (1u << lane) - 1;
  };
  return _mm512_mask_blend_ps(static_cast<__mmask16>(below(to) & ~below(from)), set(fill), x);
}

inline void transpose(Vec (&x)[WIDTH]) {
  Vec a[WIDTH], b[WIDTH];
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  }
  // Now b[4 g + p] has rows 4 g .. 4 g + 3 of places p, p + 4, p + 8, p + 12.
#pragma GCC unroll 16
  for (int p = 0; p < 4; ++p) {
    const Vec even_low = _mm512_shuffle_f32x4(b[p], b[p + 4], 0x88);
    const Vec odd_low = _mm512_shuffle_f32x4(b[p], b[p + 4], 0xdd);
    const Vec even_high = _mm512_shuffle_f32x4(b[p + 8], b[p + 12], 0x88);
    const Vec odd_high = _mm512_shuffle_f32x4(b[p + 8], b[p + 12], 0xdd);
    x[p] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    x[p + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    x[p + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    x[p + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

inline Vec widen(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec widen(const float* from) { return load(from); }
