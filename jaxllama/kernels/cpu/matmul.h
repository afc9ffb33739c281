// y = f(x · W): the arguments of a matmul, and the functions that each instruction set provides.
//
// Called by ffi_matmul.cc, which has checked every size. Rows are prepared first (normed, quantised
// or rounded, laid out), then multiplied tile by tile. Bit rule: the result of a row never depends
// on other rows; its sums run over the blocks of inputs in order.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "weights.h"

namespace jaxllama {

// Input rows: [count, width], float32.
struct Rows {
  const float* x;
  const float* norm;     // [width] weight of a root-mean-square norm, or null
  const int32_t* order;  // [width] the input of x for each input of W; null: the same order
  float eps;
  int64_t count;
  int64_t width;
  bool of_prompt = false;  // rows of prompts may have an arithmetic of their own
};

// The operations on the sums.
struct Finish {
  const float* bias;      // [tiles][32], or null
  const float* residual;  // [rows, added_width()] to add to the sums, or null
  float* y;               // [rows, outward]
  int64_t outward;
  bool swiglu;  // outputs alternate, sixteen gates, sixteen values: y = silu(gate) * value
};

// Returns the width of the residual: with swiglu, all gates come first, then all values.
[[maybe_unused]] static int64_t added_width(const Finish& finish) {
  return finish.swiglu ? 2 * finish.outward : finish.outward;
}

// Converts a sum of codes to a number. An instruction set may start its sums at the bits of a large
// float, so that they are floats without a conversion; `lift` then subtracts that float.
struct Scale {
  float by;
  float lift;  // -by * that float
};

// An outlier: an input far above the others of its row. In the scale of its block it would leave
// the other inputs no digits, so it is multiplied separately, in float32.
struct Apart {
  int32_t row, block, place;  // row of the band
  float x;
};

// Prepared rows, in bands of a few: [band][block][row of the band][32 inputs]. The
// arrays of a band start at the offset of its first row.
struct Prepared {
  uint8_t* inputs;  // int8 for packed weights, bfloat16 for bf16, else float32
  Scale* scales;    // [band][block][row]: packed only
  int32_t* starts;  // [band][block][row], in q6 [band][block][half][row]: start value of a sum of
                    // codes: -zero * sum of inputs, plus the lift of the instruction set
  float* sums;      // [band][group][row]: scale * sum of inputs, if there are minima
  Apart* apart;     // [band][up to one per row and block], by row, then block: packed only
  int32_t* aparts;  // [band]: their number, at the offset of the band's first row
};

// A few neighbouring rows that are multiplied together.
struct Band {
  int64_t first;
  int count;
};

// Prepared rows in `count` even bands, from row `first` of the call on: twenty rows in three bands are
// 6, 7 and 7. Functions of it are static, not members: see isa.h.
struct Bands {
  int64_t first, rows, count;
};

// Returns the index of a band's first row among the prepared rows.
[[maybe_unused]] static int64_t band_start(const Bands& bands, int64_t index) {
  return index * bands.rows / bands.count;
}

[[maybe_unused]] static Band band_of(const Bands& bands, int64_t index) {
  const int64_t start = band_start(bands, index), end = band_start(bands, index + 1);
  return {bands.first + start, static_cast<int>(end - start)};
}

// Some of the bands, from `begin` to `end` - 1.
struct BandRun {
  const Bands& bands;
  int64_t begin, end;
};

// Quantisation of inputs for packed weights: to bytes; the largest input of a block becomes 127.
constexpr float kLargestCode = 127.0f;
constexpr float kSmallest = 1e-30f;  // below, 127 / largest overflows float32
constexpr float kLargest = 1e33f;    // above, a lift might overflow
constexpr float kTowers = 6.0f;      // outliers exceed this times the row's root mean square
constexpr int kAtOnce = 4;  // blocks quantised in one step
constexpr int kAhead = 4096;  // bytes to prefetch ahead: weights are read once and in order

[[maybe_unused]] static constexpr size_t input_bytes(Kind kind) {
  return is_packed(kind) ? 1 : kind == Kind::bf16 ? 2 : 4;
}

// Returns the sums of codes per block: 2 for q6, whose half blocks have separate scales, else 1.
[[maybe_unused]] static constexpr int sums_of(Kind kind) { return kind == Kind::q6 ? 2 : 1; }

struct MatmulOps {
  int most_rows;  // of one band
  // `local` is the index of the band's first row among the prepared rows. Null in bodies with tiles:
  // rows are prepared with vectors.
  void (*prepare)(const Weights&, const Rows&, const Prepared&, Band, int64_t local);
  // Multiplies all rows of some bands by one tile of outputs. `panel` holds the unpacked weights.
  void (*multiply)(const Weights&, int64_t tile, uint8_t* panel, const Prepared&, const BandRun&,
                   const Finish&);
  // Null unless weights are unpacked, once for all bands.
  size_t (*panel_bytes)(const Weights&, const Bands&);
  void (*unpack)(const Weights&, int64_t tile, uint8_t* panel);
  void (*release)();  // what `multiply` holds on this thread; null if it holds nothing
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
namespace amx {
extern const MatmulOps matmul_ops;
}
namespace emulated {
extern const MatmulOps matmul_ops;
}

// Multiplies all rows; returns false if there is no memory for the prepared rows.
bool matmul(const Weights& weights, const Rows& rows, const Finish& finish);

// Multiplies the wanted rows; the others become 0 with `clear`, else their values are undefined.
bool matmul_of(const bool* wanted, bool clear, const Weights& weights, const Rows& rows,
               const Finish& finish);

}  // namespace jaxllama
