// A matrix as the matmul kernels read it: tiles of 32 outputs, cut into blocks of 32 inputs.
//
// Made once at load by tile.cc, from then on only read. Every array is [tile][block]..., so a matrix
// can be split along its outputs and along its inputs by slicing. Outputs of the last tile and inputs
// of the last block that the matrix does not have are zero.
//
//   q4    codes [8][16][4] bytes: vector 2j + h holds, for the sixteen outputs of half h, the inputs
//         4j..4j+3 in the low and 16+4j..16+4j+3 in the high nibbles, 0..15
//   q8    codes [16][16][4] bytes: vector 2j + h holds the inputs 4j..4j+3, each code + 128
//   bf16  [16][2][16][2]: pairs of inputs, for two times sixteen outputs
//   f16, f32  [32][2][16]: for each input thirty-two outputs
//
// So one vector register holds four bytes (or a pair, or one number) of sixteen outputs, and the same
// inputs of an activation are broadcast to all of them: nothing is ever shuffled.
//
//   weight = scale * (code - zero) + minimum
#pragma once

#include <stddef.h>
#include <stdint.h>

// Functions here are static: see isa.h.
namespace jaxllama {

enum class Kind : int { q4, q8, bf16, f16, f32 };

// How scales (and minima) are kept, one for every `group` blocks of inputs and each output.
//   half   [1 or 2][32] float16: scales, then minima if there are any
//   full   the same in float32
//   steps  scale = unit * step: [2][32] bytes of steps for scales and minima per block, and
//          [2][32] float16 of units per eight blocks
enum class Scales : int { none, half, full, steps };

constexpr int kTile = 32;          // outputs
constexpr int kHalf = 16;          // outputs of a vector register
constexpr int kBlock = 32;         // inputs
constexpr int kBlocksPerUnit = 8;  // with Scales::steps

[[maybe_unused]] static constexpr size_t block_bytes(Kind kind) {
  return kind == Kind::q4     ? 512
         : kind == Kind::q8   ? 1024
         : kind == Kind::f32  ? 4096
                              : 2048;
}

[[maybe_unused]] static constexpr bool is_packed(Kind kind) { return kind == Kind::q4 || kind == Kind::q8; }

struct Weights {
  Kind kind;
  const uint8_t* codes;
  Scales scaling;
  bool has_minima;
  const void* scales;
  const uint8_t* steps;
  int zero;         // of q4; q8 keeps its own 128
  int64_t group;    // blocks that share a scale
  int64_t tiles;
  int64_t blocks;
};

}  // namespace jaxllama
