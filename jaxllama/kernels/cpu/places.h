// What a row holds: samplers that weaken a row's own tokens look at those only, each once, instead of
// at the whole vocabulary.
#pragma once

#include <cstdint>

namespace jaxllama {

// The logits of the tokens that rows hold.
struct TakeHeld {
  const float* logits;         // [rows, vocab]
  const std::int32_t* tokens;  // [rows, columns]
  const std::int32_t* counts;  // [rows] how many tokens of a row count; any number
  std::int64_t rows, columns, vocab;
  // [rows, columns] the first place of the token at each place; `columns` behind the last that
  // counts, and where there is no token of the vocabulary.
  std::int32_t* first;
  float* held;  // [rows, columns] its logit, or 0
  bool* sound;  // [rows] whether all of those are below +inf
};

// Writes such logits back: each token's from the place at which it comes first.
struct PutHeld {
  const std::int32_t* tokens;  // [rows, columns]
  const std::int32_t* first;   // [rows, columns]
  const float* held;           // [rows, columns]
  std::int64_t rows, columns, vocab;
  float* logits;  // [rows, vocab]
};

void take_held(const TakeHeld& call);
void put_held(const PutHeld& call);

}  // namespace jaxllama
