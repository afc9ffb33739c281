// Matmul with AVX-512: VNNI for codes, BF16 for pairs of bfloat16.
#include "matmul.h"

#include <immintrin.h>

// Before a loop of a few rounds whose arrays shall live in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace jaxllama::avx512 {
namespace {

using F = __m512;
using Pairs = __m512bh;

constexpr int kMostRows = 6;
constexpr int kZeroOfEight = 128;  // codes are unsigned here: VNNI wants it so

inline F zero() { return _mm512_setzero_ps(); }
inline F set(float x) { return _mm512_set1_ps(x); }
inline F load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, F x) { _mm512_storeu_ps(to, x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F divide(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
// Both keep a NaN of x.
inline F at_least(float low, F x) { return _mm512_max_ps(set(low), x); }
inline F at_most(float high, F x) { return _mm512_min_ps(set(high), x); }
inline F round_even(F x) { return _mm512_roundscale_ps(x, 0); }
inline F times_power(F x, F power) { return _mm512_scalef_ps(x, power); }

inline F load_half(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline F load_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

// Compared as integers, so that a NaN is larger than everything.
inline float largest_magnitude(F a, F b) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i x = _mm512_and_si512(_mm512_castps_si512(a), magnitude);
  const __m512i y = _mm512_and_si512(_mm512_castps_si512(b), magnitude);
  return _mm_cvtss_f32(_mm_castsi128_ps(
      _mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_max_epi32(x, y)))));
}

// Rounds thirty-two numbers times `factor` to bytes; returns their sum.
inline int32_t quantise(F a, F b, float factor, int8_t* to) {
  const __m512i x = _mm512_cvtps_epi32(mul(a, set(factor)));
  const __m512i y = _mm512_cvtps_epi32(mul(b, set(factor)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kHalf), _mm512_cvtepi32_epi8(y));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(x, y));
}

inline void store_narrow(uint16_t* to, F a, F b) {
  const __m512bh pairs = _mm512_cvtne2ps_pbh(b, a);
  __builtin_memcpy(to, &pairs, sizeof pairs);
}

inline Pairs load_pairs(const uint16_t* from) {
  Pairs pairs;
  __builtin_memcpy(&pairs, from, sizeof pairs);
  return pairs;
}

inline __m512i broadcast_four(const void* from) {
  int32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

inline Pairs set_pair(const uint16_t* from) { return (Pairs)broadcast_four(from); }
inline F dot_pairs(Pairs w, Pairs x, F sum) { return _mm512_dpbf16_ps(sum, w, x); }

template <int bits, int N>
inline void dots(const uint8_t* codes, const int8_t* inputs, const int32_t* zeros, F (&out)[N][2]) {
  __m512i acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = _mm512_set1_epi32(zeros[r]);
  if constexpr (bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int j = 0; j < 4; ++j) {
      const __m512i w0 = _mm512_loadu_si512(codes + j * 128);
      const __m512i w1 = _mm512_loadu_si512(codes + j * 128 + 64);
      const __m512i l0 = _mm512_and_si512(w0, low), l1 = _mm512_and_si512(w1, low);
      const __m512i h0 = _mm512_and_si512(_mm512_srli_epi16(w0, 4), low);
      const __m512i h1 = _mm512_and_si512(_mm512_srli_epi16(w1, 4), low);
      UNROLL for (int r = 0; r < N; ++r) {
        const __m512i x = broadcast_four(inputs + r * kBlock + 4 * j);
        const __m512i y = broadcast_four(inputs + r * kBlock + 4 * j + 16);
        acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], l0, x);
        acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], l1, x);
        acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], h0, y);
        acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], h1, y);
      }
    }
  } else {
    UNROLL for (int j = 0; j < 8; ++j) {
      const __m512i w0 = _mm512_loadu_si512(codes + j * 128);
      const __m512i w1 = _mm512_loadu_si512(codes + j * 128 + 64);
      UNROLL for (int r = 0; r < N; ++r) {
        const __m512i x = broadcast_four(inputs + r * kBlock + 4 * j);
        acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w0, x);
        acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w1, x);
      }
    }
  }
  UNROLL for (int r = 0; r < N; ++r) {
    out[r][0] = _mm512_cvtepi32_ps(acc[r][0]);
    out[r][1] = _mm512_cvtepi32_ps(acc[r][1]);
  }
}

#include "matmul_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, prepare, multiply};

}  // namespace jaxllama::avx512
