// Choosing with AVX-512: vectors of sixteen.
#include <immintrin.h>

#include "choose.h"

namespace jaxllama {
namespace avx512 {
namespace {

constexpr int WIDTH = 16;

using Vec = __m512;
using Flags = __mmask16;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The larger number; if one is NaN, the second argument.
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec at_least(Vec x, float low) { return _mm512_max_ps(set(low), x); }
inline Vec whole(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline Vec times_power(Vec x, Vec power) { return _mm512_scalef_ps(x, power); }
inline float highest(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }

inline Flags no_flags() { return 0; }
inline Flags note_unsound(Flags so_far, Vec x) {
  return _kor_mask16(so_far, _mm512_cmp_ps_mask(x, set(__builtin_inff()), _CMP_NLT_UQ));
}
inline bool is_any(Flags flags) { return flags != 0; }
inline unsigned bits_at_least(Vec x, Vec least) {
  return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ);
}
inline unsigned bits_above(Vec x, Vec least) { return _mm512_cmp_ps_mask(x, least, _CMP_GT_OQ); }
inline void put_places(std::int32_t* to, std::int64_t first, unsigned bits) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
  // Stores all sixteen lanes: the next store overwrites the surplus ones.
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), places));
}

#include "choose_body.h"

}  // namespace

const ChooseBody choose_body{survey, find, weigh, add_weights, reaching, collect};

}  // namespace avx512
}  // namespace jaxllama
