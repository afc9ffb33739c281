// Vectors of sixteen floats with AVX-512, for attention.
//
// Included by attend_avx512.cc and attend_amx.cc inside their own unnamed namespaces: see isa.h.

constexpr int WIDTH = 16;
constexpr int TILE_VECTORS = 4;  // with six rows: twenty-four sums, in thirty-two registers

using Vec = __m512;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
inline Vec set(float x) { return _mm512_set1_ps(x); }
inline float first(Vec x) { return _mm512_cvtss_f32(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The larger number; if one is NaN, the second argument.
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec at_least(Vec x, float low) { return _mm512_max_ps(set(low), x); }
inline Vec whole(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline Vec times_power(Vec x, Vec power) { return _mm512_scalef_ps(x, power); }
// Keeps lanes from..to-1 of x and sets the others to `fill`.
inline Vec keep(Vec x, std::int64_t from, std::int64_t to, float fill) {
  const auto below = [](std::int64_t lane) {
    return lane <= 0 ? 0u : lane >= WIDTH ? 0xffffu : (1u << lane) - 1;
  };
  return _mm512_mask_blend_ps(static_cast<__mmask16>(below(to) & ~below(from)), set(fill), x);
}
inline float highest(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }

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
