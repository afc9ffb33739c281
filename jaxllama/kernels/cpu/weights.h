// The layout of a matrix for the matmul kernels: tiles of 32 outputs, cut into blocks of 32 inputs.
//
// tile.cc builds it once at load; afterwards it is only read. Every array is [tile][block]..., so
// slices split a matrix along its outputs or its inputs. Padding outputs of the last tile and
// padding inputs of the last block are zero.
//
//   q4    codes [8][16][4] bytes: vector 2j + h holds, for the sixteen outputs of half h, the inputs
//         4j..4j+3 in the low and 16+4j..16+4j+3 in the high nibbles, 0..15
//   q5    the low four bits as q4, then the fifth: [2][16][4] bytes, for the two halves of outputs;
//         bit 4i + j of byte b belongs to input 16i + 4j + b
//   q6    the low four bits as q4, then two more: [2][2][16][4] bytes, for the first and the last
//         sixteen inputs and the two halves of outputs; bits 2j and 2j + 1 of byte b belong to input
//         4j + b of those sixteen
//   q8    codes [16][16][4] bytes: vector 2j + h holds the inputs 4j..4j+3, each code + 128
//   bf16  [16][2][16][2]: pairs of inputs, for two times sixteen outputs
//   f16, f32  [32][2][16]: for each input thirty-two outputs
//
// So one vector register has four bytes (or a pair, or one number) of sixteen outputs, and the same
// inputs of an activation are broadcast to all of them, without any shuffle.
//
//   weight = scale * (code - zero) + minimum
#pragma once

#include <stddef.h>
#include <stdint.h>

// Functions here are static: see isa.h.
namespace jaxllama {

enum class Kind : int { q4, q5, q6, q8, bf16, f16, f32 };

// The storage of scales and minima, one for every `group` blocks of inputs and each output.
//   half   [1 or 2][32] float16: scales, then minima if there are any
//   full   the same in float32
//   steps  scale = unit * step: [2][32] bytes of steps for scales and minima per block, and
//          [2][32] float16 of units per eight blocks
//   halves scale = unit * step, in q6 only: [2][32] signed bytes of steps for the first
//          and the last sixteen inputs of a block, and [32] float16 of units per eight blocks
enum class Scales : int { none, half, full, steps, halves };

constexpr int kTile = 32;          // outputs
constexpr int kHalf = 16;          // outputs of a vector register
constexpr int kBlock = 32;         // inputs
constexpr int kBlocksPerUnit = 8;  // with Scales::steps and Scales::halves
constexpr int kNibbles = 512;      // bytes that store the low four bits of a block

[[maybe_unused]] static constexpr size_t block_bytes(Kind kind) {
  return kind == Kind::q4     ? kNibbles
         : kind == Kind::q5   ? kNibbles + 128
         : kind == Kind::q6   ? kNibbles + 256
         : kind == Kind::q8   ? 1024
         : kind == Kind::f32  ? 4096
                              : 2048;
}

[[maybe_unused]] static constexpr bool is_packed(Kind kind) { return kind <= Kind::q8; }

[[maybe_unused]] static constexpr Kind kind_of(int bits) {
  return bits == 4 ? Kind::q4 : bits == 5 ? Kind::q5 : bits == 6 ? Kind::q6 : Kind::q8;
}

struct Weights {
  Kind kind;
  const uint8_t* codes;
  Scales scaling;
  bool has_minima;
  const void* scales;
  const uint8_t* steps;
  int zero;         // of q4, q5 and q6; q8 keeps its own 128
  int64_t group;    // blocks that share a scale
  int64_t tiles;
  int64_t blocks;
};

}  // namespace jaxllama
