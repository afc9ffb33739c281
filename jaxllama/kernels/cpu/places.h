// Where the tokens of a row come first: samplers that weaken what a row holds look at those tokens
// only, each once, instead of at the whole vocabulary.
#pragma once

#include <cstdint>

namespace jaxllama {

struct FirstPlaces {
  const std::int32_t* tokens;  // [rows, columns]
  const std::int32_t* counts;  // [rows] how many tokens of a row count; any number
  std::int64_t rows, columns, vocab;
  // [rows, columns] the first place of the token at each place; `columns` behind the last that
  // counts, and where there is no token of the vocabulary.
  std::int32_t* first;
};

void first_places(const FirstPlaces& call);

}  // namespace jaxllama
