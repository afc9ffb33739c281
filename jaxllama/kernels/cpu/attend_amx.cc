// Attention of prompts with the tiles of AMX; decode steps are those of AVX-512.
//
// Keys, values, queries and softmax weights are rounded to bfloat16; sums are float32. A float32 cache
// stays exact: its prompts are those of AVX-512, too.
#include <immintrin.h>

#include <cstring>

#include "attend.h"
#include "attend_numbers.h"
#include "inlining.h"

namespace jaxllama {
namespace amx {
namespace {

#include "amx_tiles.h"

#include "attend_vectors_avx512.h"

#include "attend_body.h"

template <class T>
inline __m512i pairs(const T* from) {
  const __m512bh both = _mm512_cvtne2ps_pbh(widen(from + WIDTH), widen(from));
  return reinterpret_cast<__m512i>(both);
}
template <class T>
inline __m512i pairs_half(const T* from) {
  const __m256bh half = _mm512_cvtneps_pbh(widen(from));
  return _mm512_zextsi256_si512(reinterpret_cast<__m256i>(half));
}

#include "attend_pairs.h"

// Pairs of bfloat16 that are multiplied in tiles: 32 rows by 32 places at a time.
struct TilePairs : Pairs {
  static constexpr bool TILES = true;
  static constexpr int ROWS = 16, PLACES = 16, STEPS = 16;  // of one tile

  // Multiplies rows by a panel. `steps` is a multiple of 16, `places` of 16.
  template <Sums SUMS>
  static void multiply(const float* a, std::int64_t a_row, const Packed& panel, std::int64_t steps,
                       float* to, std::int64_t to_row, std::int64_t rows, std::int64_t places) {
    for (std::int64_t row = 0; row < rows; row += 2 * ROWS) {
      const std::int64_t count = smaller_of(2 * ROWS, rows - row);
      shape_tiles(static_cast<int>(count));
      const float* own = a + row * a_row;
      float* out = to + row * to_row;
      for (std::int64_t place = 0; place < places; place += 2 * PLACES) {
        const Packed part{panel.from + place, panel.row};
        const bool wide = places - place > PLACES;
        if (count > ROWS) {
          wide ? square<SUMS, true, true>(own, a_row, part, steps, out + place, to_row)
               : square<SUMS, true, false>(own, a_row, part, steps, out + place, to_row);
        } else {
          wide ? square<SUMS, false, true>(own, a_row, part, steps, out + place, to_row)
               : square<SUMS, false, false>(own, a_row, part, steps, out + place, to_row);
        }
      }
    }
  }

  // Says whether a step of packed values has neither NaN nor infinity.
  static bool is_sound(const float* step, std::int64_t size) {
    const __m512i infinite = _mm512_set1_epi16(0x7f80);
    __mmask32 found = 0;
    for (std::int64_t i = 0; i < size; i += WIDTH) {
      const __m512i kept = _mm512_and_si512(_mm512_loadu_si512(step + i), infinite);
      found |= _mm512_cmpeq_epi16_mask(kept, infinite);
    }
    return found == 0;
  }

 private:
  template <Sums SUMS, int T>
  static void begin(const float* from, std::int64_t row_bytes) {
    if constexpr (SUMS == Sums::begin) {
      clear_tile<T>();
    } else {
      load_tile<T>(from, row_bytes);
    }
  }

  template <Sums SUMS, bool TALL, bool WIDE>
  static void square(const float* a, std::int64_t a_row, const Packed& panel, std::int64_t steps,
                     float* to, std::int64_t to_row) {
    const std::int64_t a_bytes = a_row * 4, b_bytes = panel.row * 4, to_bytes = to_row * 4;
    float* const below = to + ROWS * to_row;
    begin<SUMS, 0>(to, to_bytes);
    if (WIDE) begin<SUMS, 1>(to + PLACES, to_bytes);
    if (TALL) begin<SUMS, 2>(below, to_bytes);
    if (TALL && WIDE) begin<SUMS, 3>(below + PLACES, to_bytes);
    for (std::int64_t step = 0; step < steps; step += STEPS) {
      const float* b = panel.from + step * panel.row;
      load_tile<4>(a + step, a_bytes);
      load_tile<6>(b, b_bytes);
      add_pairs<0, 4, 6>();
      if (WIDE) load_tile<7>(b + PLACES, b_bytes);
      if (WIDE) add_pairs<1, 4, 7>();
      if (TALL) load_tile<5>(a + ROWS * a_row + step, a_bytes);
      if (TALL) add_pairs<2, 5, 6>();
      if (TALL && WIDE) add_pairs<3, 5, 7>();
    }
    store_tile<0>(to, to_bytes);
    if (WIDE) store_tile<1>(to + PLACES, to_bytes);
    if (TALL) store_tile<2>(below, to_bytes);
    if (TALL && WIDE) store_tile<3>(below + PLACES, to_bytes);
  }
};

template <class T>
struct DotOf {
  using Dot = TilePairs;
};

void prompt_in_tiles(const AttendPrompt& call, std::int64_t part, float* scratch) {
  const bool exact = call.cache.kind == CacheKind::f32;
  if (exact || call.cache.size % (2 * TilePairs::STEPS) != 0) {
    return avx512::attend_body.prompt(call, part, scratch);
  }
  prompt(call, part, scratch);
  release_tiles();
}

void step_in_vectors(const AttendStep& call, std::int64_t part, float* scratch) {
  avx512::attend_body.step(call, part, scratch);
}

void append_row_in_vectors(const AttendStep& call, std::int64_t row, float* scratch) {
  avx512::attend_body.append_row(call, row, scratch);
}

void append_column_by_column(const AttendPrompt& call, std::int64_t part, float* scratch) {
  avx512::attend_body.append(call, part, scratch);
}

}  // namespace

const AttendBody attend_body{step_in_vectors, append_row_in_vectors,
                             append_column_by_column, prompt_in_tiles, 128};

}  // namespace amx
}  // namespace jaxllama
