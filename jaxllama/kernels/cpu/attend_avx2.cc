// Attention with AVX2, FMA and F16C: vectors of eight.
#include <immintrin.h>

#include <cstring>

#include "attend.h"
#include "attend_numbers.h"

namespace jaxllama {
namespace avx2 {
namespace {

#include "vectors_avx2.h"

constexpr int TILE_VECTORS = 2;  // with six rows: twelve sums, in sixteen registers

inline float first(Vec x) { return _mm256_cvtss_f32(x); }
// Keeps lanes from..to-1 of x and sets the others to `fill`.
inline Vec keep(Vec x, std::int64_t from, std::int64_t to, float fill) {
  const Vec lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  const Vec chosen = _mm256_and_ps(_mm256_cmp_ps(lane, set(static_cast<float>(from)), _CMP_GE_OQ),
                                   _mm256_cmp_ps(lane, set(static_cast<float>(to)), _CMP_LT_OQ));
  return _mm256_blendv_ps(set(fill), x, chosen);
}

inline void transpose(Vec (&x)[WIDTH]) {
  Vec pairs[WIDTH], fours[WIDTH];
  for (int i = 0; i < WIDTH; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < WIDTH; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

inline __m128i eight(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
inline Vec widen(const Bf16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight(from)), 16));
}
inline Vec widen(const Half* from) { return _mm256_cvtph_ps(eight(from)); }
inline Vec widen(const float* from) { return load(from); }
inline Vec widen(const std::int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

#include "attend_body.h"

template <class T>
struct DotOf {
  using Dot = Wide;
};

}  // namespace

const AttendBody attend_body{step, append_row, append, prompt, 64};

}  // namespace avx2
}  // namespace jaxllama
