// The matmul kernels, written once over the sixteen-lane vectors of an instruction set.
//
// Included by matmul_<isa>.cc inside its namespace, after the vector type `Vec` and its operations are
// defined; nothing here is visible elsewhere. `dots<bits, N>` multiplies one block of codes with N
// rows, exactly, in integers that start at kLiftBits; `half_dots<bits, half, N>` multiplies sixteen
// inputs of a block; `scaled` converts the sums to numbers. kMostRows depends on the registers. All
// other code is here and in the files that this one includes, in this order.

// Each kind of weights has a function of its own: inlined into one, they take twice as long to
// compile, and are up to a tenth slower with eight rows.
#define SEPARATE __attribute__((noinline))

#include "matmul_ends.h"
#include "matmul_rows.h"
#include "matmul_scales.h"
#include "matmul_tiles.h"
#include "matmul_finish.h"

template <int N>
void multiply_band(const Weights& weights, int64_t tile, const Prepared& from, int64_t local,
                   Band band, const Finish& finish) {
  expect_outputs<N>(finish, tile, band);
  Sums<N> sums;
  UNROLL for (int r = 0; r < N; ++r) sums[r][0] = sums[r][1] = zero();
#define PACKED(bits, scaling, minima, single) \
  multiply_packed<bits, Scales::scaling, minima, single, N>(weights, tile, from, local, sums)
#define SCALED(bits, scaling)                                                           \
  (weights.has_minima                                                                   \
       ? (weights.group == 1 ? PACKED(bits, scaling, true, true)                        \
                             : PACKED(bits, scaling, true, false))                      \
       : (weights.group == 1 ? PACKED(bits, scaling, false, true)                       \
                             : PACKED(bits, scaling, false, false)))
  switch (weights.kind) {
    case Kind::q4:
      if (weights.scaling == Scales::half) SCALED(4, half);
      if (weights.scaling == Scales::full) SCALED(4, full);
      if (weights.scaling == Scales::steps) PACKED(4, steps, true, true);
      break;
    case Kind::q5:
      if (weights.scaling == Scales::half) SCALED(5, half);
      if (weights.scaling == Scales::full) SCALED(5, full);
      if (weights.scaling == Scales::steps) PACKED(5, steps, true, true);
      break;
    case Kind::q6:
      multiply_halves<N>(weights, tile, from, local, sums);
      break;
    case Kind::q8:
      if (weights.scaling == Scales::half) SCALED(8, half);
      if (weights.scaling == Scales::full) SCALED(8, full);
      break;
    case Kind::bf16:
      multiply_dense<Kind::bf16, N>(weights, tile, from, local, sums);
      break;
    case Kind::f16:
      multiply_dense<Kind::f16, N>(weights, tile, from, local, sums);
      break;
    case Kind::f32:
      multiply_dense<Kind::f32, N>(weights, tile, from, local, sums);
      break;
  }
#undef SCALED
#undef PACKED
  for (int r = 0; r < N; ++r) finish_row(finish, tile, band.first + r, sums[r][0], sums[r][1]);
}

void multiply(const Weights& weights, int64_t tile, uint8_t*, const Prepared& from,
              const BandRun& run, const Finish& finish) {
  for (int64_t index = run.begin; index < run.end; ++index) {
    const Band band = band_of(run.bands, index);
    const int64_t local = band_start(run.bands, index);
    switch (band.count) {
#define ROWS(N)                                                                               \
  case N:                                                                                     \
    if constexpr (N <= kMostRows) multiply_band<N>(weights, tile, from, local, band, finish); \
    break;
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
    }
  }
}
