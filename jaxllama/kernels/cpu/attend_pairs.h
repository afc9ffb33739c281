// Dot products of pairs of bfloat16 with AVX-512.
//
// Included by attend_avx512.cc and attend_amx.cc after attend_body.h, inside their own unnamed
// namespaces.

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
  static constexpr bool TILES = false;  // whether products go through matrix tiles

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
