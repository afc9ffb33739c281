#include "places.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "pool.h"
#include "scratch.h"

namespace jaxllama {
namespace {

void first_of_row(const FirstPlaces& call, std::int64_t row) {
  const auto size = static_cast<std::size_t>(call.vocab) * sizeof(std::int32_t);
  // By token; only what was written is read, so nothing needs to be cleared.
  auto* seen = reinterpret_cast<std::int32_t*>(scratch(size));
  if (seen == nullptr) std::abort();  // out of memory inside a worker: there is nobody to tell
  const std::int32_t* tokens = call.tokens + row * call.columns;
  std::int32_t* first = call.first + row * call.columns;
  const std::int64_t count =
      std::clamp<std::int64_t>(call.counts[row], std::int64_t{0}, call.columns);
  const auto is_token = [&](std::int64_t place) {
    return tokens[place] >= 0 && tokens[place] < call.vocab;
  };
  for (std::int64_t place = count - 1; place >= 0; --place) {
    if (is_token(place)) seen[tokens[place]] = static_cast<std::int32_t>(place);
  }
  const auto nowhere = static_cast<std::int32_t>(call.columns);
  for (std::int64_t place = 0; place < count; ++place) {
    first[place] = is_token(place) ? seen[tokens[place]] : nowhere;
  }
  std::fill(first + count, first + call.columns, nowhere);
}

}  // namespace

void first_places(const FirstPlaces& call) {
  parallel_for(static_cast<int>(call.rows),
               [&](int row) { first_of_row(call, std::int64_t{row}); });
}

}  // namespace jaxllama
