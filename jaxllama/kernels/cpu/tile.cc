// From matrices as files hold them to tiles (see weights.h): done once per weight, while it is loaded.
//
// Called by tiled.py through ctypes, which has checked every size and made the arrays, zeroed.
#include <cstdint>
#include <cstring>

#include "half.h"
#include "library.h"
#include "pool.h"
#include "weights.h"

namespace jaxllama {
namespace {

// Where output `each` of one source goes: after `offset` others; or with `turn` 0 or 1, to the first
// or second sixteen of a tile, so that gates and values of the same outputs share one.
struct Place {
  int64_t offset;
  int turn;

  int64_t of(int64_t each) const {
    return turn < 0 ? offset + each : each / kHalf * kTile + turn * kHalf + each % kHalf;
  }
};

constexpr int64_t kOutputsPerPart = 64;

template <class F>
void for_outputs(int64_t outputs, const F& f) {
  const int64_t parts = (outputs + kOutputsPerPart - 1) / kOutputsPerPart;
  parallel_for(static_cast<int>(parts), [&](int part) {
    const int64_t end = (part + 1) * kOutputsPerPart;
    for (int64_t each = part * kOutputsPerPart; each < end && each < outputs; ++each) f(each);
  });
}

// Four nibbles of two bytes, each in a byte of its own.
uint32_t spread(const uint8_t* two) {
  uint32_t bits = two[0] | static_cast<uint32_t>(two[1]) << 8;
  bits = (bits | bits << 8) & 0x00ff00ff;
  return (bits | bits << 4) & 0x0f0f0f0f;
}

void tile_nibbles(const uint8_t* from, uint8_t* lane) {
  for (int j = 0; j < 4; ++j) {
    const uint32_t four = spread(from + 2 * j) | spread(from + 8 + 2 * j) << 4;
    std::memcpy(lane + j * 128, &four, sizeof four);
  }
}

void tile_bytes(const uint8_t* from, uint8_t* lane) {
  for (int j = 0; j < 8; ++j) {
    uint32_t four;
    std::memcpy(&four, from + 4 * j, sizeof four);
    four ^= 0x80808080;  // + 128
    std::memcpy(lane + j * 128, &four, sizeof four);
  }
}

// `value` as float16, if it is one exactly.
bool as_half(float value, uint16_t* half) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 127;
  const uint32_t mantissa = bits & 0x7fffff;
  if ((bits & 0x7fffffff) == 0) {
    *half = sign;
    return true;
  }
  if (exponent > 15 || exponent < -24) return false;
  const int dropped = exponent >= -14 ? 13 : -1 - exponent;
  if (((mantissa | 0x800000) & ((1u << dropped) - 1)) != 0) return false;
  *half = exponent >= -14
              ? static_cast<uint16_t>(sign | (exponent + 15) << 10 | mantissa >> 13)
              : static_cast<uint16_t>(sign | (mantissa | 0x800000) >> dropped);
  return true;
}

// Eight numbers as steps of one float16 unit, if they are exactly that.
bool in_steps(const float* eight, int most, float unit, uint8_t* steps) {
  for (int each = 0; each < kBlocksPerUnit; ++each) {
    const float step = eight[each] / unit;
    if (!(step >= 0.0f && step <= static_cast<float>(most))) return false;
    steps[each] = static_cast<uint8_t>(step);
    if (unit * steps[each] != eight[each]) return false;
  }
  return true;
}

bool find_unit(const float* eight, uint16_t* unit, uint8_t* steps) {
  constexpr int kMost = 255;
  float largest = 0.0f;
  for (int each = 0; each < kBlocksPerUnit; ++each) {
    if (__builtin_fabsf(eight[each]) > __builtin_fabsf(largest)) largest = eight[each];
  }
  if (largest == 0.0f) {
    *unit = 0;
    for (int each = 0; each < kBlocksPerUnit; ++each) {
      if (eight[each] != 0.0f) return false;  // NaN
      steps[each] = 0;
    }
    return true;
  }
  // Files have six bits and most groups use them up, so the first try usually fits.
  for (int tried = 0; tried <= kMost; ++tried) {
    const int step = tried == 0 ? 63 : tried;
    const float value = largest / static_cast<float>(step);
    if (as_half(value, unit) && in_steps(eight, kMost, value, steps)) return true;
  }
  return false;
}

}  // namespace
}  // namespace jaxllama

using namespace jaxllama;

// Codes [outputs, width] of 4 or 8 bits into `to` [tiles, blocks, ...]. Width is whole blocks.
JAXLLAMA_EXPORT void jaxllama_tile_packed(int bits, const uint8_t* codes, int64_t outputs,
                                          int64_t blocks, int64_t offset, int turn, uint8_t* to) {
  const Place place{offset, turn};
  const int64_t from_bytes = bits == 4 ? kBlock / 2 : kBlock;
  const auto to_bytes = static_cast<int64_t>(block_bytes(bits == 4 ? Kind::q4 : Kind::q8));
  for_outputs(outputs, [&](int64_t each) {
    const int64_t output = place.of(each);
    const int lane = static_cast<int>(output % kTile);
    const int at = lane / kHalf * 64 + lane % kHalf * 4;
    uint8_t* tile = to + output / kTile * blocks * to_bytes + at;
    const uint8_t* from = codes + each * blocks * from_bytes;
    for (int64_t block = 0; block < blocks; ++block) {
      if (bits == 4) {
        tile_nibbles(from + block * from_bytes, tile + block * to_bytes);
      } else {
        tile_bytes(from + block * from_bytes, tile + block * to_bytes);
      }
    }
  });
}

// Numbers of 2 or 4 bytes, at from + output * per_output + input * per_input bytes, into tiles.
JAXLLAMA_EXPORT void jaxllama_tile_dense(int size, int in_pairs, const uint8_t* from,
                                         int64_t outputs, int64_t width, int64_t per_output,
                                         int64_t per_input, int64_t offset, int turn, uint8_t* to) {
  const Place place{offset, turn};
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  for_outputs(outputs, [&](int64_t each) {
    const int64_t output = place.of(each);
    const int64_t lane = output % kTile;
    const int64_t half = lane / kHalf, spot = lane % kHalf;
    uint8_t* tile = to + output / kTile * blocks * kBlock * kTile * size;
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at =
          in_pairs ? ((k / 2 * 2 + half) * kHalf + spot) * 2 + k % 2 : k * kTile + lane;
      std::memcpy(tile + at * size, from + each * per_output + k * per_input, size);
    }
  });
}

// Rows of `count` eights as units [rows, count] and steps [rows, 8 * count]; 0 if not exact.
JAXLLAMA_EXPORT int jaxllama_find_steps(const float* numbers, int64_t rows, int64_t count,
                                        uint16_t* units, uint8_t* steps) {
  bool exact = true;  // written by several threads, but only ever to false
  for_outputs(rows, [&](int64_t row) {
    bool fits = true;
    for (int64_t each = row * count; fits && each < (row + 1) * count; ++each) {
      fits = find_unit(numbers + each * kBlocksPerUnit, units + each, steps + each * kBlocksPerUnit);
    }
    if (!fits) __atomic_store_n(&exact, false, __ATOMIC_RELAXED);
  });
  return exact ? 1 : 0;
}
