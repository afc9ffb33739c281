#include "take_rows.h"

#include <algorithm>

#include "half.h"

namespace jaxllama {
namespace {

float scale_at(const Weights& weights, int64_t index) {
  if (weights.scaling == Scales::full) return static_cast<const float*>(weights.scales)[index];
  return widen_half(static_cast<const uint16_t*>(weights.scales)[index]);
}

// Returns the scale of one half of a block of one output.
float scale_of_half(const Weights& weights, int64_t tile, int64_t block, int half, int lane) {
  const int64_t at = tile * weights.blocks + block;
  const uint8_t step = weights.steps[(at * 2 + half) * kTile + lane];
  return scale_at(weights, at / kBlocksPerUnit * kTile + lane) *
         static_cast<float>(static_cast<int8_t>(step));
}

// Returns the scale (part 0) or minimum (part 1) of a block of one output.
float factor(const Weights& weights, int64_t tile, int64_t block, int part, int lane) {
  const int kinds = weights.has_minima ? 2 : 1;
  const bool steps = weights.scaling == Scales::steps;
  const int64_t per_scale = steps ? kBlocksPerUnit : weights.group;
  const int64_t groups = (weights.blocks + per_scale - 1) / per_scale;
  const int64_t group = tile * groups + block / per_scale;
  const float scale = scale_at(weights, (group * kinds + part) * kTile + lane);
  if (!steps) return scale;
  return scale * weights.steps[((tile * weights.blocks + block) * 2 + part) * kTile + lane];
}

// Returns the code of one input minus its zero.
int code_at(const Weights& weights, const uint8_t* block, int k, int lane) {
  const int half = lane / kHalf, place = lane % kHalf;
  if (weights.kind == Kind::q8) return block[((k / 4 * 2 + half) * kHalf + place) * 4 + k % 4] - 128;
  const int low = k % 16, part = k / 16;
  const uint8_t two = block[((low / 4 * 2 + half) * kHalf + place) * 4 + low % 4];
  int code = two >> 4 * part & 15;
  const uint8_t* top = block + kNibbles + (half * kHalf + place) * 4 + low % 4;
  if (weights.kind == Kind::q5) code |= (*top >> (part * 4 + low / 4) & 1) << 4;
  if (weights.kind == Kind::q6) code |= (top[part * 128] >> low / 4 * 2 & 3) << 4;
  return code - weights.zero;
}

float number_at(Kind kind, const uint8_t* block, int k, int lane) {
  const int half = lane / kHalf, place = lane % kHalf;
  const auto* narrow = reinterpret_cast<const uint16_t*>(block);
  if (kind == Kind::f16) return widen_half(narrow[k * kTile + lane]);
  if (kind == Kind::f32) return reinterpret_cast<const float*>(block)[k * kTile + lane];
  return widen_bfloat(narrow[((k / 2 * 2 + half) * kHalf + place) * 2 + k % 2]);
}

void take_row(const Weights& weights, int64_t output, int64_t width, float* y) {
  const int64_t tile = output / kTile;
  const int lane = static_cast<int>(output % kTile);
  for (int64_t block = 0; block * kBlock < width; ++block) {
    const uint8_t* at =
        weights.codes + (tile * weights.blocks + block) * block_bytes(weights.kind);
    const int count = static_cast<int>(std::min<int64_t>(kBlock, width - block * kBlock));
    float* to = y + block * kBlock;
    if (!is_packed(weights.kind)) {
      for (int k = 0; k < count; ++k) to[k] = number_at(weights.kind, at, k, lane);
      continue;
    }
    if (weights.kind == Kind::q6) {
      for (int k = 0; k < count; ++k) {
        to[k] = scale_of_half(weights, tile, block, k / 16, lane) *
                static_cast<float>(code_at(weights, at, k, lane));
      }
      continue;
    }
    const float scale = factor(weights, tile, block, 0, lane);
    const float minimum = weights.has_minima ? factor(weights, tile, block, 1, lane) : 0.0f;
    for (int k = 0; k < count; ++k) {
      to[k] = scale * static_cast<float>(code_at(weights, at, k, lane)) + minimum;
    }
  }
}

}  // namespace

void take_rows(const Weights& weights, const int32_t* tokens, int64_t count, int64_t outward,
               int64_t width, float* y) {
  for (int64_t each = 0; each < count; ++each) {
    const int64_t output = std::min<int64_t>(std::max<int64_t>(tokens[each], 0), outward - 1);
    take_row(weights, output, width, y + each * width);
  }
}

}  // namespace jaxllama
