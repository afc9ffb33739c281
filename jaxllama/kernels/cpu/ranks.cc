#include "ranks.h"

#include <algorithm>
#include <cmath>

#include "choose.h"
#include "isa.h"
#include "pool.h"

namespace jaxllama {
namespace {

std::int64_t alive_in(const float* logits, std::int64_t width) {
  std::int64_t count = 0;
  while (count < width && logits[count] > -INFINITY) ++count;
  return count;
}

// Moves the kept candidates to the front and returns their number.
std::int64_t gather(const bool* keep, std::int64_t alive, std::int32_t* ids, float* logits) {
  std::int64_t count = 0;
  for (std::int64_t each = 0; each < alive; ++each) {
    if (!keep[each]) continue;
    ids[count] = ids[each];
    logits[count++] = logits[each];
  }
  return count;
}

void close_row(const CloseRanks& call, std::int64_t row) {
  const std::int64_t width = call.width;
  std::int32_t* ids = call.ids + row * width;
  float* logits = call.logits + row * width;
  float* shares = call.shares + row * width;
  const std::int64_t alive = alive_in(logits, width);
  std::int64_t count = gather(call.keep + row * width, alive, ids, logits);
  if (count == 0) count = alive;
  call.last[row] = ids[std::max<std::int64_t>(count, 1) - 1];
  std::fill(logits + count, logits + width, -INFINITY);
  std::fill(shares + count, shares + width, 0.0f);
  const ChooseBody& body = JAXLLAMA_PICK(choose_body);
  body.weigh(logits, count, logits[0], CHOOSE_LOG2E, shares);
  const double total = choose_total(shares, count);
  call.log_total[row] = logits[0] + static_cast<float>(std::log(total));
  body.weigh(logits, count, call.log_total[row], CHOOSE_LOG2E, shares);
}

}  // namespace

void close_ranks(const CloseRanks& call) {
  parallel_for(static_cast<int>(call.rows), [&](int row) {
    call.last[row] = call.ids[row * call.width + call.width - 1];
    if (call.on[row]) close_row(call, std::int64_t{row});
  });
}

}  // namespace jaxllama
