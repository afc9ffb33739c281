// y = scale * (norm(x) · A) · B: what a low-rank adapter adds to the results of a group of matmuls.
//
// Called by ffi_adapt.cc, which has checked every size. A row has one adapter or none. Bit rule: the
// result of a row never depends on other rows; its sums run in a fixed order.
#pragma once

#include <stdint.h>

#include "matmul.h"

namespace jaxllama {

constexpr int kMostParts = 3;      // matmuls of one group
constexpr int kMostRank = 256;     // of one adapter
constexpr int kRankStep = kHalf;   // ranks are padded to vector registers

// The matrices of all adapters for one group of matmuls that read the same rows; float16.
struct Adapters {
  const uint16_t* a;              // [adapter][width][part * rank]
  const uint16_t* b[kMostParts];  // [adapter][rank][outward of the part]
  int64_t outward[kMostParts];
  int64_t parts;
  int64_t rank;
};

constexpr int kMostTogether = 4;  // rows that read the matrices of their adapter together

struct AdaptOps {
  // Writes the outputs of all parts of a few rows that have the same adapter, side by side. `y` has
  // `total` outputs for each row of the call, and `scales` one number.
  void (*adapt)(const Adapters&, const Rows&, const int64_t* places, int count, int64_t adapter,
                const float* scales, int64_t total, float* y);
};

namespace portable {
extern const AdaptOps adapt_ops;
}
namespace avx2 {
extern const AdaptOps adapt_ops;
}
namespace avx512 {
extern const AdaptOps adapt_ops;
}

}  // namespace jaxllama
