// Choosing with AVX-512: vectors of sixteen.
#include <immintrin.h>

#include "choose.h"

namespace jaxllama {
namespace avx512 {
namespace {

#include "vectors_avx512.h"

using Flags = __mmask16;

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
