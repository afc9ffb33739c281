#include "places.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>

#include "pool.h"
#include "scratch.h"

namespace jaxllama {
namespace {

void take_from_row(const TakeHeld& call, std::int64_t row) {
  const auto size = static_cast<std::size_t>(call.vocab) * sizeof(std::int32_t);
  // Indexed by token; only written entries are read, so the memory needs no initial value.
  auto* seen = reinterpret_cast<std::int32_t*>(scratch(size, Scratch::call));
  if (seen == nullptr) std::abort();  // out of memory; a worker cannot report an error
  const float* logits = call.logits + row * call.vocab;
  const std::int32_t* tokens = call.tokens + row * call.columns;
  std::int32_t* first = call.first + row * call.columns;
  float* held = call.held + row * call.columns;
  const std::int64_t count =
      std::clamp<std::int64_t>(call.counts[row], std::int64_t{0}, call.columns);
  const auto is_token = [&](std::int64_t place) {
    return tokens[place] >= 0 && tokens[place] < call.vocab;
  };
  for (std::int64_t place = count - 1; place >= 0; --place) {
    if (is_token(place)) seen[tokens[place]] = static_cast<std::int32_t>(place);
  }
  const auto nowhere = static_cast<std::int32_t>(call.columns);
  bool sound = true;
  for (std::int64_t place = 0; place < count; ++place) {
    first[place] = is_token(place) ? seen[tokens[place]] : nowhere;
    held[place] = is_token(place) ? logits[tokens[place]] : 0.0f;
    sound &= held[place] < INFINITY;
  }
  call.sound[row] = sound;
  std::fill(first + count, first + call.columns, nowhere);
  std::fill(held + count, held + call.columns, 0.0f);
}

void put_into_row(const PutHeld& call, std::int64_t row) {
  float* logits = call.logits + row * call.vocab;
  const std::int32_t* tokens = call.tokens + row * call.columns;
  const std::int32_t* first = call.first + row * call.columns;
  for (std::int64_t place = 0; place < call.columns; ++place) {
    const bool is_token = tokens[place] >= 0 && tokens[place] < call.vocab;
    if (first[place] == place && is_token) logits[tokens[place]] = call.held[row * call.columns + place];
  }
}

}  // namespace

void take_held(const TakeHeld& call) {
  parallel_for(static_cast<int>(call.rows),
               [&](int row) { take_from_row(call, std::int64_t{row}); });
}

void put_held(const PutHeld& call) {
  parallel_for(static_cast<int>(call.rows),
               [&](int row) { put_into_row(call, std::int64_t{row}); });
}

}  // namespace jaxllama
