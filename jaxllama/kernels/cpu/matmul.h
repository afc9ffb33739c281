// y = f(x · W): what a matmul kernel does, and the body of it that each instruction set provides.
//
// Called by ffi_matmul.cc, which has checked every size. Rows are prepared first (normed, quantised
// or rounded, laid out), then multiplied tile by tile. Bit rule: what happens to a row never depends
// on the others; its sums run over the blocks of inputs in order.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "weights.h"

namespace jaxllama {

// The rows that go in: [count, width], float32.
struct Rows {
  const float* x;
  const float* norm;     // [width] weight of a root-mean-square norm, or null for none
  const int32_t* order;  // [width] which input of x the k-th input of W is, or null for the same
  float eps;
  int64_t count;
  int64_t width;
};

// What becomes of the sums.
struct Finish {
  const float* bias;      // [tiles][32], or null
  const float* residual;  // [rows, outward] to add, or null
  float* y;               // [rows, outward]
  int64_t outward;
  bool swiglu;  // outputs are gates and values by turns of sixteen: y = silu(gate) * value
};

// What makes a number of a sum of codes. An instruction set may let its sums start from the bits of
// a large float, so that they are floats without being converted; `lift` then takes that off again.
struct Scale {
  float by;
  float lift;  // -by * that float
};

// An input that towers above its row. Rounded with the others of its block it would leave them no
// digits, so it meets its weights by itself, as float32.
struct Apart {
  int32_t row, block, place;  // row of the band
  float x;
};

// Rows ready to be multiplied, in bands of a few: [band][block][row of the band][32 inputs]. The
// arrays of a band start where its first row's would if every row had the same room.
struct Prepared {
  uint8_t* inputs;  // int8 for packed weights, bfloat16 for bf16, else float32
  Scale* scales;    // [band][block][row]: packed only
  int32_t* starts;  // [band][block][row], of q6 [band][block][half][row]: what a sum of codes starts
                    // from: -zero * sum of inputs, and the lift of the instruction set
  float* sums;      // [band][group][row]: scale * sum of inputs, if there are minima
  Apart* apart;     // [band][at most one for each row and block], a row's by block: packed only
  int32_t* aparts;  // [band]: how many, where its first row's would be
};

// Some neighbouring rows that are multiplied together.
struct Band {
  int64_t first;
  int count;
};

// How inputs meet packed weights: in bytes, 127 being the largest of a block.
constexpr float kLargestCode = 127.0f;
constexpr float kSmallest = 1e-30f;  // below, 127 / largest would leave float32
constexpr float kLargest = 1e33f;    // above, a lift might
constexpr float kTowers = 6.0f;      // times the root of a row's mean square
constexpr int kAtOnce = 4;  // blocks that are quantised together

[[maybe_unused]] static constexpr size_t input_bytes(Kind kind) {
  return is_packed(kind) ? 1 : kind == Kind::bf16 ? 2 : 4;
}

// How many sums of codes a block has: the halves of a q6 have scales of their own.
[[maybe_unused]] static constexpr int sums_of(Kind kind) { return kind == Kind::q6 ? 2 : 1; }

struct MatmulOps {
  int most_rows;  // of a band
  // `local` counts the band's first row from the first prepared one.
  void (*prepare)(const Weights&, const Rows&, const Prepared&, Band, int64_t local);
  void (*multiply)(const Weights&, int64_t tile, const Prepared&, int64_t local, Band,
                   const Finish&);
};

namespace portable {
extern const MatmulOps matmul_ops;
}
namespace avx2 {
extern const MatmulOps matmul_ops;
}
namespace avx512 {
extern const MatmulOps matmul_ops;
}

// False if there is no memory for the prepared rows.
bool matmul(const Weights& weights, const Rows& rows, const Finish& finish);

// The same for some of the rows; what nobody wants costs nothing and becomes 0.
bool matmul_of(const bool* wanted, const Weights& weights, const Rows& rows, const Finish& finish);

}  // namespace jaxllama
