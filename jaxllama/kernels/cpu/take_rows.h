// Single outputs of a tiled matrix as float32: what an embedding lookup needs, so that a tied model
// keeps one copy of its embedding.
#pragma once

#include "weights.h"

namespace jaxllama {

// y[i, k] = weight of input k and output tokens[i]; tokens are clamped to [0, outward), as XLA does.
void take_rows(const Weights& weights, const int32_t* tokens, int64_t count, int64_t outward,
               int64_t width, float* y);

}  // namespace jaxllama
