// Matmul with the tiles of AMX, and AVX-512 for everything else.
#include "inlining.h"
#include "matmul.h"

#include <immintrin.h>

namespace jaxllama::amx {
namespace {

#include "matmul_vectors_avx512.h"

#include "amx_tiles.h"

// Reads inputs 16 i + 4 j to 16 i + 4 j + 3 of a block, for the sixteen outputs of half h.
template <int bits>
INLINE __m512i codes_of(const uint8_t* codes, int i, int j, int h) {
  if constexpr (bits == 8) return _mm512_loadu_si512(codes + (2 * (4 * i + j) + h) * 64);
  const __m512i both = _mm512_loadu_si512(codes + (2 * j + h) * 64);
  const __m512i low = _mm512_and_si512(i == 0 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
  if constexpr (bits == 4) return low;
  const int place = bits == 5 ? 4 * i + j : 2 * j;  // of the high bits in their byte
  const __m512i top = _mm512_loadu_si512(codes + kNibbles + (bits == 5 ? 0 : i * 128) + h * 64);
  const __m512i moved = place < 4 ? _mm512_slli_epi16(top, static_cast<unsigned>(4 - place))
                                  : _mm512_srli_epi16(top, static_cast<unsigned>(place - 4));
  const __m512i mask = _mm512_set1_epi8(bits == 5 ? 0x10 : 0x30);
  return _mm512_or_si512(low, _mm512_and_si512(moved, mask));
}

// Returns 2^bits + byte `b` of each output: the byte becomes the first bits of a mantissa.
template <int bits, int b>
INLINE Vec lifted(__m512i codes) {
  constexpr int up = 23 - bits - 8 * b;
  constexpr int exponent = (127 + bits) << 23, mantissa = ((1 << bits) - 1) << (23 - bits);
  const __m512i moved = up >= 0 ? _mm512_slli_epi32(codes, static_cast<unsigned>(up))
                                : _mm512_srli_epi32(codes, static_cast<unsigned>(-up));
  const __m512i number = _mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(mantissa),
                                                   _mm512_set1_epi32(exponent), 0xea);  // a & b | c
  return _mm512_castsi512_ps(number);
}

INLINE void store_pairs(uint16_t* to, Vec even, Vec odd) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);  // all even ones first
  const __m512i order = _mm512_setr_epi32(
      0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
      0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, halves));
}

#include "matmul_amx_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, nullptr, multiply, panel_bytes, unpack, release_tiles};

}  // namespace jaxllama::amx
