// Attention with AVX-512 and its dot products of bfloat16: vectors of sixteen.
//
// A bfloat16 or int8 cache is multiplied as pairs of bfloat16, exact for what lies in the cache; the
// query and the weights are rounded to bfloat16 for it. Sums are float32.
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
// Where one is NaN: the second.
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec at_least(Vec x, float low) { return _mm512_max_ps(set(low), x); }
inline Vec whole(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline Vec times_power(Vec x, Vec power) { return _mm512_scalef_ps(x, power); }
// Lanes from..to-1 of x, the others filled.
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
  // Now b[4 g + p] holds rows 4 g .. 4 g + 3 of places p, p + 4, p + 8, p + 12.
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

// Thirty-two numbers as bfloat16.
inline __m512i pairs(const Bf16* from) { return _mm512_loadu_si512(from); }
inline __m512i pairs(const std::int8_t* from) {
  const auto floats = [](const std::int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  };
  const __m512bh both = _mm512_cvtne2ps_pbh(floats(from + 16), floats(from));
  return reinterpret_cast<__m512i>(both);
}
// Sixteen, the rest zero.
inline __m512i pairs_half(const Bf16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_zextsi256_si512(half);
}
inline __m512i pairs_half(const std::int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256bh half = _mm512_cvtneps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  return _mm512_zextsi256_si512(reinterpret_cast<__m256i>(half));
}
template <class T>
__m512i pairs_of(const T* from, std::int64_t left) {
  return left < 32 ? pairs_half(from) : pairs(from);
}

// Products of pairs: a lane of a vector holds two steps of the sum.
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

  // [count, size] to [size / 2, CHUNK] pairs; columns from `count` on are zero.
  template <class T>
  static void pack_keys(const T* rows, std::int64_t count, std::int64_t size, const Ahead& ahead,
                        float* to) {
    for (std::int64_t group = 0; group < count; group += WIDTH) {
      for (std::int64_t i = group; i < group + WIDTH; ++i) ahead.fetch(i);
      for (std::int64_t place = 0; place < size; place += 2 * WIDTH) {
        Vec square[WIDTH];
        const T* from = rows + group * size + place;
        if (group + WIDTH <= count) {
#pragma GCC unroll 16
          for (int i = 0; i < WIDTH; ++i) {
            square[i] = _mm512_castsi512_ps(pairs_of(from + i * size, size - place));
          }
        } else {
          for (int i = 0; i < WIDTH; ++i) {
            square[i] = group + i < count
                            ? _mm512_castsi512_ps(pairs_of(from + i * size, size - place))
                            : _mm512_setzero_ps();
          }
        }
        transpose(square);
        float* lane = to + place / 2 * CHUNK + group;
        const int used = size - place < 2 * WIDTH ? WIDTH / 2 : WIDTH;
        for (int i = 0; i < used; ++i) store(lane + i * CHUNK, square[i]);
      }
    }
  }

  // [count, size] to [count / 2, size] pairs of columns; a missing last column is zero.
  template <class T>
  static const float* pack_values(const T* rows, std::int64_t count, std::int64_t size,
                                  const Ahead& ahead, float* to) {
    alignas(64) std::uint16_t order[2][32];
    for (int i = 0; i < 32; ++i) {
      const int place = i / 2 + i % 2 * 32;
      order[0][i] = static_cast<std::uint16_t>(place);
      order[1][i] = static_cast<std::uint16_t>(place + 16);
    }
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (std::int64_t i = 0; i < count; i += 2) {
      ahead.fetch(i);
      ahead.fetch(i + 1);
      const T* from = rows + i * size;
      float* row = to + i / 2 * size;
      for (std::int64_t place = 0; place < size; place += 2 * WIDTH) {
        const std::int64_t left = size - place;
        const __m512i one = pairs_of(from + place, left);
        const __m512i two =
            i + 1 < count ? pairs_of(from + size + place, left) : _mm512_setzero_si512();
        _mm512_storeu_si512(row + place, _mm512_permutex2var_epi16(one, low, two));
        if (left > WIDTH) {
          _mm512_storeu_si512(row + place + WIDTH, _mm512_permutex2var_epi16(one, high, two));
        }
      }
    }
    return to;
  }

  // One step of values with only its first or only its second column left.
  static void pack_edge(const float* from, bool second, std::int64_t size, float* to) {
    const __m512i kept = _mm512_set1_epi32(second ? -65536 : 65535);
    for (std::int64_t i = 0; i < size; i += WIDTH) {
      _mm512_storeu_si512(to + i, _mm512_and_si512(_mm512_loadu_si512(from + i), kept));
    }
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
