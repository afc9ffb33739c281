// Matmul with AVX-512: VNNI for codes, BF16 for pairs of bfloat16.
#include "adapt.h"
#include "inlining.h"
#include "matmul.h"

#include <immintrin.h>

namespace jaxllama::avx512 {
namespace {

#include "matmul_vectors_avx512.h"

using Pairs = __m512bh;

constexpr int kMostRows = 8;
constexpr int kZeroOfEight = 128;  // codes are unsigned here, as VNNI requires
// 1.5 * 2^23: adding an integer below 2^22 to its bits adds the integer to the float.
constexpr float kLift = 12582912.0f;
constexpr int32_t kLiftBits = 0x4b400000;

// Returns sum * scale, rounded once: scales have so few bits that their lift is exact.
inline Vec scaled(Vec sum, Scale scale) { return fma(sum, set(scale.by), set(scale.lift)); }

// Extracts some bits of each of sixteen words and subtracts `zero`.
inline Vec some_bits(const uint8_t* from, int shift, int zero, int mask) {
  const __m512i words = _mm512_srl_epi32(_mm512_loadu_si512(from), _mm_cvtsi32_si128(shift));
  const __m512i kept = _mm512_and_si512(words, _mm512_set1_epi32(mask));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(kept, _mm512_set1_epi32(zero)));
}

// Returns the larger magnitude per lane, compared as integers: NaN is larger than every number.
inline __m512i largest_of(const Vec (&block)[2]) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(block[0]), magnitude),
                          _mm512_and_si512(_mm512_castps_si512(block[1]), magnitude));
}

// Returns the largest lane of each of four vectors, in this order, in every quarter.
inline __m512i largest_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_max_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  __m512i x = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  x = _mm512_max_epi32(x, _mm512_shuffle_i32x4(x, x, 0x4e));
  return _mm512_max_epi32(x, _mm512_shuffle_i32x4(x, x, 0xb1));
}

// Packs two blocks to bytes, in the word order of the packing instructions: quarter q has words q
// and q + 4 of the first block, then of the second.
inline __m512i pack_pair(const Vec (&first)[2], __m512 by_first, const Vec (&second)[2],
                         __m512 by_second) {
  const __m512i a = _mm512_packs_epi32(_mm512_cvtps_epi32(mul(first[0], by_first)),
                                       _mm512_cvtps_epi32(mul(first[1], by_first)));
  const __m512i b = _mm512_packs_epi32(_mm512_cvtps_epi32(mul(second[0], by_second)),
                                       _mm512_cvtps_epi32(mul(second[1], by_second)));
  return _mm512_packs_epi16(a, b);
}

// Rounds scales to 22 bits; the scale of a block with NaN or too large numbers becomes NaN.
inline __m128 short_or_nan(__m128 scales, __m128 largest) {
  const __m128 few_bits = _mm_castsi128_ps(_mm_set1_epi32(-4));
  const __mmask8 sound = _mm_cmp_ps_mask(largest, _mm_set1_ps(kLargest), _CMP_LE_OQ);
  return _mm_mask_and_ps(_mm_set1_ps(__builtin_nanf("")), sound, scales, few_bits);
}

inline void quantise(const Vec (&blocks)[kAtOnce][2], int8_t* bytes, float* scales, int32_t* sums) {
  const __m512i bits = largest_lanes(largest_of(blocks[0]), largest_of(blocks[1]),
                                     largest_of(blocks[2]), largest_of(blocks[3]));
  const __m512 largest = _mm512_castsi512_ps(bits);
  const __mmask16 sound = _mm512_cmp_ps_mask(largest, set(kSmallest), _CMP_GE_OQ) &
                          _mm512_cmp_ps_mask(largest, set(kLargest), _CMP_LE_OQ);
  const __m128 four = _mm512_castps512_ps128(largest);
  _mm_storeu_ps(scales, short_or_nan(_mm_div_ps(four, _mm_set1_ps(kLargestCode)), four));
  const __m512 by = _mm512_broadcast_f32x4(_mm_div_ps(_mm_set1_ps(kLargestCode), four));

  __m512i ab = pack_pair(blocks[0], _mm512_permute_ps(by, 0x00), blocks[1],
                         _mm512_permute_ps(by, 0x55));
  __m512i cd = pack_pair(blocks[2], _mm512_permute_ps(by, 0xaa), blocks[3],
                         _mm512_permute_ps(by, 0xff));
  // Blocks that are not sound become zero.
  const __m512i kept = _mm512_movm_epi32(sound);
  ab = _mm512_and_si512(ab, _mm512_unpacklo_epi32(kept, kept));
  cd = _mm512_and_si512(cd, _mm512_unpackhi_epi32(kept, kept));

  const __m512i in_order =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_store_si512(bytes, _mm512_permutexvar_epi32(in_order, ab));
  _mm512_store_si512(bytes + 64, _mm512_permutexvar_epi32(in_order, cd));

  const __m512i ones = _mm512_set1_epi8(1), none = _mm512_setzero_si512();
  const __m512 fours = _mm512_castsi512_ps(_mm512_dpbusd_epi32(none, ones, ab));
  const __m512 others = _mm512_castsi512_ps(_mm512_dpbusd_epi32(none, ones, cd));
  __m512i x = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(fours, others, 0x88)),
                               _mm512_castps_si512(_mm512_shuffle_ps(fours, others, 0xdd)));
  x = _mm512_add_epi32(x, _mm512_shuffle_i32x4(x, x, 0x4e));
  x = _mm512_add_epi32(x, _mm512_shuffle_i32x4(x, x, 0xb1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), _mm512_castsi512_si128(x));
}

inline void store_narrow(uint16_t* to, Vec a, Vec b) {
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
inline Vec dot_pairs(Pairs w, Pairs x, Vec sum) { return _mm512_dpbf16_ps(sum, w, x); }

// Shifts bytes by some bits, left if `by` is positive. The caller masks bits that crossed into a
// neighbouring byte.
template <int by>
INLINE __m512i moved(__m512i x) {
  if constexpr (by > 0) return _mm512_slli_epi16(x, by);
  if constexpr (by < 0) return _mm512_srli_epi16(x, -by);
  return x;
}

// Adds inputs 4j..4j+3 of half a block whose codes have five or six bits.
template <int bits, int half, int j, int N>
INLINE void add_four(const uint8_t* codes, const int8_t* inputs, __m512i (&acc)[N][2]) {
  constexpr int place = bits == 5 ? half * 4 + j : 2 * j;  // bit position of the high bits
  const __m512i low = _mm512_set1_epi8(15), mask = _mm512_set1_epi8(bits == 5 ? 0x10 : 0x30);
  __m512i w[2];
  UNROLL for (int h = 0; h < 2; ++h) {
    const __m512i nibbles = moved<-4 * half>(_mm512_loadu_si512(codes + j * 128 + h * 64));
    const __m512i top =
        _mm512_loadu_si512(codes + kNibbles + (bits == 5 ? 0 : half * 128) + h * 64);
    w[h] = _mm512_or_si512(_mm512_and_si512(nibbles, low),
                           _mm512_and_si512(moved<4 - place>(top), mask));
  }
  UNROLL for (int r = 0; r < N; ++r) {
    const __m512i x = broadcast_four(inputs + r * kBlock + half * 16 + 4 * j);
    acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w[0], x);
    acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w[1], x);
  }
}

template <int bits, int half, int N>
INLINE void add_half(const uint8_t* codes, const int8_t* inputs, __m512i (&acc)[N][2]) {
  add_four<bits, half, 0>(codes, inputs, acc);
  add_four<bits, half, 1>(codes, inputs, acc);
  add_four<bits, half, 2>(codes, inputs, acc);
  add_four<bits, half, 3>(codes, inputs, acc);
}

template <int bits, int half, int N>
INLINE void half_dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts,
                      Vec (&out)[N][2]) {
  __m512i acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = _mm512_set1_epi32(starts[r]);
  add_half<bits, half>(codes, inputs, acc);
  UNROLL for (int r = 0; r < N; ++r) {
    out[r][0] = _mm512_castsi512_ps(acc[r][0]);
    out[r][1] = _mm512_castsi512_ps(acc[r][1]);
  }
}

template <int bits, int N>
INLINE void dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts, Vec (&out)[N][2]) {
  __m512i acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = _mm512_set1_epi32(starts[r]);
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
  } else if constexpr (bits == 5) {
    add_half<5, 0>(codes, inputs, acc);
    add_half<5, 1>(codes, inputs, acc);
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
    out[r][0] = _mm512_castsi512_ps(acc[r][0]);
    out[r][1] = _mm512_castsi512_ps(acc[r][1]);
  }
}

#include "matmul_body.h"
// Uses its functions.
#include "adapt_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, prepare, multiply, nullptr, nullptr, nullptr};
const AdaptOps adapt_ops = {adapt};

}  // namespace jaxllama::avx512
