// The best candidates of every row, and who is left of them after a filter.
#pragma once

#include <cstdint>

namespace jaxllama {

// Survivors move to the front in their order and are weighed anew; behind them nothing has weight. A
// row of which nobody is kept keeps all it had. The logits of a row fall from place to place.
struct CloseRanks {
  const bool* keep;  // [rows, width]
  const bool* on;    // [rows] the others stay as they are
  std::int64_t rows, width;
  std::int32_t* ids;   // [rows, width]
  float* logits;       // [rows, width] -inf: not among the survivors
  float* shares;       // [rows, width] of the survivors' weight
  float* log_total;    // [rows] the log-sum-exp of the survivors
  std::int32_t* last;  // [rows] the id of the last survivor
};

void close_ranks(const CloseRanks& call);

}  // namespace jaxllama
