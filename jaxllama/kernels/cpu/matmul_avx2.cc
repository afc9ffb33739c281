// Matmul with AVX2, FMA and F16C: sixteen lanes are two registers.
#include "adapt.h"
#include "inlining.h"
#include "matmul.h"

#include <immintrin.h>

namespace jaxllama::avx2 {
namespace {

struct Vec {
  __m256 a, b;
};

struct Pairs {
  Vec even, odd;
};

constexpr int kMostRows = 4;
constexpr int kZeroOfEight = 0;  // codes are converted back to signed
constexpr float kLift = 0.0f;
constexpr int32_t kLiftBits = 0;

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Vec x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
inline Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec divide(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Vec scaled(Vec sum, Scale scale) { return mul(sum, set(scale.by)); }

inline float sum(Vec x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// A NaN in x stays NaN.
inline Vec at_least(Vec x, float low) {
  return {_mm256_max_ps(_mm256_set1_ps(low), x.a), _mm256_max_ps(_mm256_set1_ps(low), x.b)};
}

inline Vec round_even(Vec x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}

inline __m256 power_of_two(__m256 power) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

inline Vec times_power(Vec x, Vec power) {
  return {_mm256_mul_ps(x.a, power_of_two(power.a)), _mm256_mul_ps(x.b, power_of_two(power.b))};
}

inline __m128i load_sixteen(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
inline __m256i load_bits(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline Vec load_half(const uint16_t* from) {
  return {_mm256_cvtph_ps(load_sixteen(from)), _mm256_cvtph_ps(load_sixteen(from + 8))};
}

inline Vec load_bytes(const uint8_t* from) {
  const __m128i bytes = load_sixteen(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline Vec load_signed(const uint8_t* from) {
  const __m128i bytes = load_sixteen(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

// Extracts some bits of each of sixteen words and subtracts `zero`.
inline Vec some_bits(const uint8_t* from, int shift, int zero, int mask) {
  const auto eight = [&](const uint8_t* at) {
    const __m256i words = _mm256_srl_epi32(load_bits(at), _mm_cvtsi32_si128(shift));
    const __m256i kept = _mm256_and_si256(words, _mm256_set1_epi32(mask));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(kept, _mm256_set1_epi32(zero)));
  };
  return {eight(from), eight(from + 32)};
}

inline __m256i magnitude(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

// Compares magnitudes as integers, so that a NaN is larger than every number.
inline float largest_magnitude(Vec x, Vec y) {
  const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(magnitude(x.a), magnitude(x.b)),
                                         _mm256_max_epi32(magnitude(y.a), magnitude(y.b)));
  __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

// Multiplies thirty-two numbers by `factor`, rounds them to bytes and returns the sum of the bytes.
inline int32_t round_block(const Vec (&block)[2], float factor, int8_t* to) {
  const Vec &x = block[0], &y = block[1];
  const __m256 by = _mm256_set1_ps(factor);
  const __m256i parts[4] = {_mm256_cvtps_epi32(_mm256_mul_ps(x.a, by)),
                            _mm256_cvtps_epi32(_mm256_mul_ps(x.b, by)),
                            _mm256_cvtps_epi32(_mm256_mul_ps(y.a, by)),
                            _mm256_cvtps_epi32(_mm256_mul_ps(y.b, by))};
  int32_t total = 0;
  for (int each = 0; each < 4; ++each) {
    int32_t eight[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(eight), parts[each]);
    for (int k = 0; k < 8; ++k) {
      to[each * 8 + k] = static_cast<int8_t>(eight[k]);
      total += eight[k];
    }
  }
  return total;
}

inline void quantise(const Vec (&blocks)[kAtOnce][2], int8_t* bytes, float* scales, int32_t* sums) {
  for (int b = 0; b < kAtOnce; ++b) {
    const float largest = largest_magnitude(blocks[b][0], blocks[b][1]);
    scales[b] = largest <= kLargest ? largest / kLargestCode : __builtin_nanf("");
    const bool sound = largest >= kSmallest && largest <= kLargest;
    if (sound) {
      sums[b] = round_block(blocks[b], kLargestCode / largest, bytes + b * kBlock);
      continue;
    }
    sums[b] = 0;
    for (int k = 0; k < kBlock; ++k) bytes[b * kBlock + k] = 0;
  }
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline __m256i narrow(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_srli_epi32(
      _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan)), 16);
}

inline void store_narrow(uint16_t* to, Vec x, Vec y) {
  const __m256 parts[4] = {x.a, x.b, y.a, y.b};
  for (int each = 0; each < 4; ++each) {
    const __m256i wide = narrow(parts[each]);
    const __m128i eight =
        _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + each * 8), eight);
  }
}

inline __m256 even_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
inline __m256 odd_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

inline Pairs load_pairs(const uint16_t* from) {
  const __m256i x = load_bits(from), y = load_bits(from + kHalf);
  return {{even_of(x), even_of(y)}, {odd_of(x), odd_of(y)}};
}

inline __m256i broadcast_four(const void* from) {
  int32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return _mm256_set1_epi32(four);
}

inline Pairs set_pair(const uint16_t* from) {
  const __m256i x = broadcast_four(from);
  return {{even_of(x), even_of(x)}, {odd_of(x), odd_of(x)}};
}

inline Vec dot_pairs(const Pairs& w, const Pairs& x, Vec sum) {
  return fma(w.even, x.even, fma(w.odd, x.odd, sum));
}

// Adds eight outputs of a block of nibbles. Pairs of products are at most 2 * 15 * 127; sums of
// eight pairs fit sixteen bits.
template <int N>
INLINE void nibble_dots(const uint8_t* codes, const int8_t* inputs, __m256i (&acc)[N]) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i pairs[N];
  UNROLL for (int r = 0; r < N; ++r) pairs[r] = _mm256_setzero_si256();
  UNROLL for (int j = 0; j < 4; ++j) {
    const __m256i w = load_bits(codes + j * 128);
    const __m256i l = _mm256_and_si256(w, low);
    const __m256i h = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
    UNROLL for (int r = 0; r < N; ++r) {
      const __m256i x = broadcast_four(inputs + r * kBlock + 4 * j);
      const __m256i y = broadcast_four(inputs + r * kBlock + 4 * j + 16);
      pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(l, x));
      pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(h, y));
    }
  }
  UNROLL for (int r = 0; r < N; ++r) {
    acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1)));
  }
}

// Adds eight outputs of a block of bytes: |w| times the input with the sign of w. A pair is at most
// 2 * 128 * 127 and fits sixteen bits; the sum of two pairs does not.
template <int N>
INLINE void byte_dots(const uint8_t* codes, const int8_t* inputs, __m256i (&acc)[N]) {
  UNROLL for (int j = 0; j < 8; ++j) {
    const __m256i w = _mm256_xor_si256(load_bits(codes + j * 128), _mm256_set1_epi8(-128));
    const __m256i size = _mm256_abs_epi8(w);
    UNROLL for (int r = 0; r < N; ++r) {
      const __m256i x = _mm256_sign_epi8(broadcast_four(inputs + r * kBlock + 4 * j), w);
      const __m256i pairs = _mm256_maddubs_epi16(size, x);
      acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
}

// Shifts bytes by some bits, left if `by` is positive. The caller masks bits that crossed into a
// neighbouring byte.
template <int by>
INLINE __m256i moved(__m256i x) {
  if constexpr (by > 0) return _mm256_slli_epi16(x, by);
  if constexpr (by < 0) return _mm256_srli_epi16(x, -by);
  return x;
}

// Unpacks codes of five or six bits: inputs 4j..4j+3 of half a block, eight outputs.
template <int bits, int half, int j>
INLINE __m256i four_codes(const uint8_t* codes) {
  constexpr int place = bits == 5 ? half * 4 + j : 2 * j;  // bit position of the high bits
  const __m256i top = load_bits(codes + kNibbles + (bits == 5 ? 0 : half * 128));
  const __m256i nibbles = moved<-4 * half>(load_bits(codes + j * 128));
  return _mm256_or_si256(
      _mm256_and_si256(nibbles, _mm256_set1_epi8(15)),
      _mm256_and_si256(moved<4 - place>(top), _mm256_set1_epi8(bits == 5 ? 0x10 : 0x30)));
}

// Adds products of two pairs at a time: at most 2 * 2 * 63 * 127, the most that fits sixteen bits.
template <int bits, int half, int j, int N>
INLINE void add_eight(const uint8_t* codes, const int8_t* inputs, __m256i (&acc)[N]) {
  const __m256i v = four_codes<bits, half, j>(codes), w = four_codes<bits, half, j + 1>(codes);
  UNROLL for (int r = 0; r < N; ++r) {
    const int8_t* row = inputs + r * kBlock + half * 16 + 4 * j;
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(v, broadcast_four(row)),
                                           _mm256_maddubs_epi16(w, broadcast_four(row + 4)));
    acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

template <int bits, int half, int N>
INLINE void add_half(const uint8_t* codes, const int8_t* inputs, __m256i (&acc)[N]) {
  add_eight<bits, half, 0>(codes, inputs, acc);
  add_eight<bits, half, 2>(codes, inputs, acc);
}

template <int bits, int half, int N>
INLINE void half_dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts,
                      Vec (&out)[N][2]) {
  UNROLL for (int eighth = 0; eighth < 4; ++eighth) {
    __m256i acc[N];
    UNROLL for (int r = 0; r < N; ++r) acc[r] = _mm256_set1_epi32(starts[r]);
    add_half<bits, half>(codes + eighth * 32, inputs, acc);
    UNROLL for (int r = 0; r < N; ++r) {
      Vec& lanes = out[r][eighth / 2];
      (eighth % 2 == 0 ? lanes.a : lanes.b) = _mm256_cvtepi32_ps(acc[r]);
    }
  }
}

template <int bits, int N>
INLINE void dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts, Vec (&out)[N][2]) {
  UNROLL for (int eighth = 0; eighth < 4; ++eighth) {
    __m256i acc[N];
    UNROLL for (int r = 0; r < N; ++r) acc[r] = _mm256_set1_epi32(starts[r]);
    if constexpr (bits == 4) {
      nibble_dots<N>(codes + eighth * 32, inputs, acc);
    } else if constexpr (bits == 5) {
      add_half<5, 0>(codes + eighth * 32, inputs, acc);
      add_half<5, 1>(codes + eighth * 32, inputs, acc);
    } else {
      byte_dots<N>(codes + eighth * 32, inputs, acc);
    }
    UNROLL for (int r = 0; r < N; ++r) {
      Vec& lanes = out[r][eighth / 2];
      (eighth % 2 == 0 ? lanes.a : lanes.b) = _mm256_cvtepi32_ps(acc[r]);
    }
  }
}

#include "matmul_body.h"
// Uses its functions.
#include "adapt_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, prepare, multiply, nullptr, nullptr, nullptr};
const AdaptOps adapt_ops = {adapt};

}  // namespace jaxllama::avx2
