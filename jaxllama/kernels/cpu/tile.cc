// Converts stored matrices to tiles (see weights.h), once per weight, while a model is loaded.
//
// Called through ctypes by tiling.py, which has checked every size and allocated zeroed arrays.
#include <cstdint>
#include <cstring>

#include "half.h"
#include "library.h"
#include "pool.h"
#include "weights.h"

namespace jaxllama {
namespace {

// The target of the outputs of one matrix: after `offset` others; or with `turn` 0 or 1, the first
// or second sixteen outputs of a tile, so that gate and value of an output share a tile.
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

// Spreads the four nibbles of two bytes to four bytes.
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

// Tiles codes of five or six bits, stored in one byte each; adds `zero`, so that codes start at 0.
void tile_narrow(const uint8_t* from, int bits, int zero, uint8_t* lane) {
  for (int k = 0; k < kBlock; ++k) {
    const int code = (from[k] + zero) & 63, half = k / 16, j = k % 16 / 4, b = k % 4;
    lane[j * 128 + b] |= static_cast<uint8_t>((code & 15) << 4 * half);
    uint8_t* top = lane + kNibbles + (bits == 5 ? 0 : half * 128) + b;
    *top |= static_cast<uint8_t>(code >> 4 << (bits == 5 ? half * 4 + j : 2 * j));
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

// Converts `value` to float16; returns false if that is not exact.
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

// The range of steps, and how many share a unit.
struct Steps {
  int count, least, most;
  int usual;  // step of the largest number in most files: they use the full range
};

constexpr Steps kUnsigned{kBlocksPerUnit, 0, 255, 63}, kSigned{2 * kBlocksPerUnit, -128, 127, -128};

// Converts numbers to steps of `unit`; returns false if a product would not be exact.
bool in_steps(const float* numbers, const Steps& form, float unit, uint8_t* steps) {
  for (int each = 0; each < form.count; ++each) {
    const float step = numbers[each] / unit;
    if (!(step >= static_cast<float>(form.least) && step <= static_cast<float>(form.most))) {
      return false;
    }
    const int whole = static_cast<int>(step);
    steps[each] = static_cast<uint8_t>(whole);
    if (unit * static_cast<float>(whole) != numbers[each]) return false;
  }
  return true;
}

bool find_unit(const float* numbers, const Steps& form, uint16_t* unit, uint8_t* steps) {
  float largest = 0.0f;
  for (int each = 0; each < form.count; ++each) {
    if (__builtin_fabsf(numbers[each]) > __builtin_fabsf(largest)) largest = numbers[each];
  }
  if (largest == 0.0f) {
    *unit = 0;
    for (int each = 0; each < form.count; ++each) {
      if (numbers[each] != 0.0f) return false;  // NaN
      steps[each] = 0;
    }
    return true;
  }
  for (int tried = form.least - 1; tried <= form.most; ++tried) {
    const int step = tried < form.least ? form.usual : tried;
    if (step == 0) continue;
    const float value = largest / static_cast<float>(step);
    if (as_half(value, unit) && in_steps(numbers, form, value, steps)) return true;
  }
  return false;
}

}  // namespace
}  // namespace jaxllama

using namespace jaxllama;

// Tiles codes [outputs, width] of 4 bits, or of 5, 6 or 8 in one byte each, to [tiles, blocks,
// ...]. Width is a multiple of the block; codes of 5 and 6 bits start at -zero.
JAXLLAMA_EXPORT void jaxllama_tile_packed(int bits, int zero, const uint8_t* codes, int64_t outputs,
                                          int64_t blocks, int64_t offset, int turn, uint8_t* to) {
  const Place place{offset, turn};
  const int64_t from_bytes = bits == 4 ? kBlock / 2 : kBlock;
  const auto to_bytes = static_cast<int64_t>(block_bytes(kind_of(bits)));
  for_outputs(outputs, [&](int64_t each) {
    const int64_t output = place.of(each);
    const int lane = static_cast<int>(output % kTile);
    const int at = lane / kHalf * 64 + lane % kHalf * 4;
    uint8_t* tile = to + output / kTile * blocks * to_bytes + at;
    const uint8_t* from = codes + each * blocks * from_bytes;
    for (int64_t block = 0; block < blocks; ++block) {
      if (bits == 4) {
        tile_nibbles(from + block * from_bytes, tile + block * to_bytes);
      } else if (bits < 8) {
        tile_narrow(from + block * from_bytes, bits, zero, tile + block * to_bytes);
      } else {
        tile_bytes(from + block * from_bytes, tile + block * to_bytes);
      }
    }
  });
}

// Tiles numbers of 2 or 4 bytes, at from + output * per_output + input * per_input bytes.
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

// Splits rows of 8 * count numbers into units [rows, count] and steps [rows, 8 * count]; returns 0
// if that is not exact. With `is_signed`, 16 numbers share a unit and steps may be negative.
JAXLLAMA_EXPORT int jaxllama_find_steps(int is_signed, const float* numbers, int64_t rows,
                                        int64_t count, uint16_t* units, uint8_t* steps) {
  const Steps& form = is_signed != 0 ? kSigned : kUnsigned;
  bool exact = true;  // several threads write it, but only false
  for_outputs(rows, [&](int64_t row) {
    bool fits = true;
    for (int64_t each = row * count; fits && each < (row + 1) * count; ++each) {
      fits = find_unit(numbers + each * form.count, form, units + each, steps + each * form.count);
    }
    if (!fits) __atomic_store_n(&exact, false, __ATOMIC_RELAXED);
  });
  return exact ? 1 : 0;
}
