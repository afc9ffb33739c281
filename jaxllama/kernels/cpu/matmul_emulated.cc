// Matmul as with the tiles of AMX, in plain C++: tests run the code of matmul_amx_body.h anywhere.
#include "matmul.h"

#include "half.h"

namespace jaxllama::emulated {
namespace {

#include "vectors_portable.h"

#include "emulated_tiles.h"

struct Codes {
  uint8_t bytes[kHalf][4];
};

// Reads inputs 16 i + 4 j to 16 i + 4 j + 3 of a block, for the sixteen outputs of half h.
template <int bits>
Codes codes_of(const uint8_t* codes, int i, int j, int h) {
  Codes four;
  for (int at = 0; at < 4 * kHalf; ++at) {
    int code = bits == 8 ? codes[(2 * (4 * i + j) + h) * 64 + at]
                         : codes[(2 * j + h) * 64 + at] >> 4 * i & 15;
    if (bits == 5) code |= (codes[kNibbles + h * 64 + at] >> (4 * i + j) & 1) << 4;
    if (bits == 6) code |= (codes[kNibbles + i * 128 + h * 64 + at] >> 2 * j & 3) << 4;
    four.bytes[at / 4][at % 4] = static_cast<uint8_t>(code);
  }
  return four;
}

// Returns 2^bits + byte `b` of each output.
template <int bits, int b>
Vec lifted(const Codes& codes) {
  Vec y;
  LANES y.v[i] = static_cast<float>((1 << bits) + codes.bytes[i][b]);
  return y;
}

void store_pairs(uint16_t* to, const Vec& even, const Vec& odd) {
  LANES {
    to[2 * i] = narrow(even.v[i]);
    to[2 * i + 1] = narrow(odd.v[i]);
  }
}

#include "matmul_amx_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, nullptr, multiply, panel_bytes, unpack, release_tiles};

}  // namespace jaxllama::emulated
