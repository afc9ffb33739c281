// Choosing with AVX2 and FMA: vectors of eight.
#include <immintrin.h>

#include "choose.h"

namespace jaxllama {
namespace avx2 {
namespace {

#include "vectors_avx2.h"

using Flags = __m256;  // per lane: all bits set, or none

inline Flags no_flags() { return _mm256_setzero_ps(); }
inline Flags note_unsound(Flags so_far, Vec x) {
  return _mm256_or_ps(so_far, _mm256_cmp_ps(x, set(__builtin_inff()), _CMP_NLT_UQ));
}
inline bool is_any(Flags flags) { return _mm256_movemask_ps(flags) != 0; }
inline unsigned bits_at_least(Vec x, Vec least) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ)));
}
inline unsigned bits_above(Vec x, Vec least) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_GT_OQ)));
}
inline void put_places(std::int32_t* to, std::int64_t first, unsigned bits) {
  for (; bits != 0; bits &= bits - 1) {
    *to++ = static_cast<std::int32_t>(first) + __builtin_ctz(bits);
  }
}

#include "choose_body.h"

}  // namespace

const ChooseBody choose_body{survey, find, weigh, add_weights, reaching, collect};

}  // namespace avx2
}  // namespace jaxllama
