// Attention with AVX-512 and its dot products of bfloat16: vectors of sixteen.
//
// A bfloat16 or int8 cache is multiplied as pairs of bfloat16, which represent its numbers exactly;
// queries and softmax weights are rounded to bfloat16. Sums are float32.
#include <immintrin.h>

#include <cstring>

#include "attend.h"
#include "attend_numbers.h"

namespace jaxllama {
namespace avx512 {
namespace {

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

template <class T>
struct DotOf;

#include "attend_body.h"

// Loads thirty-two numbers as bfloat16.
inline __m512i pairs(const Bf16* from) { return _mm512_loadu_si512(from); }
inline __m512i pairs(const std::int8_t* from) {
  const auto floats = [](const std::int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  };
  const __m512bh both = _mm512_cvtne2ps_pbh(floats(from + 16), floats(from));
  return reinterpret_cast<__m512i>(both);
}
// Loads sixteen numbers as bfloat16; the other lanes are zero.
inline __m512i pairs_half(const Bf16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_zextsi256_si512(half);
}
inline __m512i pairs_half(const std::int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256bh half = _mm512_cvtneps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  return _mm512_zextsi256_si512(reinterpret_cast<__m256i>(half));
}
// Dot products of bfloat16 pairs: a lane of a vector has two terms of the sum.
struct Pairs {
  static constexpr int PAIR = 2;

  static Vec step(Vec sum, Vec b, Vec a) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(a));
  }

  static void put_query(const float* from, std::int64_t size, float* to) {
    for (std::int64_t i = 0; i < size; i += WIDTH) {
      const __m256bh half = _mm512_cvtneps_pbh(load(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2), reinterpret_cast<__m256i>(half));
    }
  }

  static void put_weights(float* row, Vec first, Vec second) {
    const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(row, reinterpret_cast<__m512i>(both));
  }
  static std::int64_t weight_place(std::int64_t column) { return column / 2; }

  // Packs keys [count, size] to [size / 2, CHUNK] pairs; columns from `count` on are zero.
  template <class T>
  static void pack_keys(const T* rows, std::int64_t count, std::int64_t size, const Ahead& ahead,
                        float* to) {
    for (std::int64_t group = 0; group < count; group += WIDTH) {
      ahead.fetch(group, WIDTH);
      for (std::int64_t place = 0; place < size; place += 2 * WIDTH) {
        const T* from = rows + group * size + place;
        float* lanes = to + place / 2 * CHUNK + group;
        if (place + 2 * WIDTH > size) {
          pack_square<true>(from, count - group, size, lanes);
        } else {
          pack_square<false>(from, count - group, size, lanes);
        }
      }
    }
  }

  // Transposes sixteen columns of thirty-two places, or of the last sixteen if HALF.
  template <bool HALF, class T>
  static void pack_square(const T* from, std::int64_t count, std::int64_t size, float* to) {
    Vec square[WIDTH];
    const auto row = [&](const T* at) {
      return _mm512_castsi512_ps(HALF ? pairs_half(at) : pairs(at));
    };
    if (count >= WIDTH) {
#pragma GCC unroll 4
      for (int i = 0; i < WIDTH; i += 4, from += 4 * size) {
        square[i] = row(from);
        square[i + 1] = row(from + size);
        square[i + 2] = row(from + 2 * size);
        square[i + 3] = row(from + 3 * size);
      }
    } else {
      for (int i = 0; i < WIDTH; ++i) {
        square[i] = i < count ? row(from + i * size) : _mm512_setzero_ps();
      }
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < (HALF ? WIDTH / 2 : WIDTH); ++i) store(to + i * CHUNK, square[i]);
  }

  // Interleaves two rows of values, from a place of the head on. VECTORS is even, or 1 for the last
  // vector of the head.
  template <class T, int VECTORS>
  static void read_values(const T* row, std::int64_t size, Vec (&panel)[VECTORS]) {
    if (VECTORS == 1) {
      panel[0] = interleaved(pairs_half(row), pairs_half(row + size), low_order());
      return;
    }
#pragma GCC unroll 4
    for (int j = 0; j + 1 < VECTORS; j += 2) {
      const __m512i one = pairs(row + j * WIDTH), two = pairs(row + size + j * WIDTH);
      panel[j] = interleaved(one, two, low_order());
      panel[j + 1] = interleaved(one, two, high_order());
    }
  }

  // Packs a step of values in which only the first or only the second column is used.
  template <class T>
  static void pack_half(const T* row, bool second, std::int64_t size, float* to) {
    for (std::int64_t i = 0; i < size; i += WIDTH) {
      const __m512i kept = pairs_half(row + i), none = _mm512_setzero_si512();
      store(to + i, second ? interleaved(none, kept, low_order())
                           : interleaved(kept, none, low_order()));
    }
  }

 private:
  static Vec interleaved(__m512i one, __m512i two, __m512i order) {
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(one, order, two));
  }
  // Source indices of the half lanes: 0 to 31 are the first row, 32 to 63 the second.
  static __m512i low_order() {
    return _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006,
                             0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d,
                             0x2e000e, 0x2f000f);
  }
  static __m512i high_order() {
    return _mm512_add_epi16(low_order(), _mm512_set1_epi16(WIDTH));
  }
};

template <class T>
struct DotOf {
  using Dot = Pairs;
};
template <>
struct DotOf<Half> {
  using Dot = Wide;
};
template <>
struct DotOf<float> {
  using Dot = Wide;
};

}  // namespace

const AttendBody attend_body{step, append, prompt};

}  // namespace avx512
}  // namespace jaxllama
