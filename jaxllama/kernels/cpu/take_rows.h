// Unpacks single outputs of a tiled matrix to float32: an embedding lookup, so that a model with
// tied embeddings stores them once.
#pragma once

#include "weights.h"

namespace jaxllama {

// y[i, k] = weight of input k and output tokens[i]; clamps tokens to [0, outward), as XLA does.
void take_rows(const Weights& weights, const int32_t* tokens, int64_t count, int64_t outward,
               int64_t width, float* y);

}  // namespace jaxllama
