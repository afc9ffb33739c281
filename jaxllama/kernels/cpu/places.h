// Logits of the tokens that a row contains. Samplers that change only these logits process each
// token once instead of the whole vocabulary.
#pragma once

#include <cstdint>

namespace jaxllama {

// Reads the logits of the tokens that rows contain.
struct TakeHeld {
  const float* logits;         // [rows, vocab]
  const std::int32_t* tokens;  // [rows, columns]
  const std::int32_t* counts;  // [rows] number of tokens of a row; any integer is safe
  std::int64_t rows, columns, vocab;
  // [rows, columns] the first place of the token at each place; `columns` after the last token and
  // for ids outside the vocabulary.
  std::int32_t* first;
  float* held;  // [rows, columns] the logit of the token, or 0
  bool* sound;  // [rows] whether all these logits are below +inf
};

// Writes such logits back, each from the first place of its token.
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
