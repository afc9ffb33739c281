// Removes the candidates of every row that a filter dropped.
#pragma once

#include <cstdint>

namespace jaxllama {

// Kept candidates move to the front in their order and their shares are computed again; places
// after them have no weight. A row that keeps no candidate stays complete. Logits of a row are
// descending.
struct CloseRanks {
  const bool* keep;  // [rows, width]
  const bool* on;    // [rows] rows to change
  std::int64_t rows, width;
  std::int32_t* ids;   // [rows, width]
  float* logits;       // [rows, width] -inf: not among the survivors
  float* shares;       // [rows, width] of the survivors' weight
  float* log_total;    // [rows] the log-sum-exp of the survivors
  std::int32_t* last;  // [rows] the id of the last survivor
};

void close_ranks(const CloseRanks& call);

}  // namespace jaxllama
