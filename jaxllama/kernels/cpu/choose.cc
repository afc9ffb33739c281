// Distributes the choice of tokens over the threads; has the code without vector instructions.
#include "choose.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "half.h"
#include "isa.h"
#include "pool.h"
#include "scratch.h"

namespace jaxllama {
namespace {

constexpr float kNothing = -INFINITY;

std::int64_t blocks_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

const ChooseBody& body() { return JAXLLAMA_PICK(choose_body); }

const float* row_of(const ChooseRows& rows, std::int64_t row) {
  return rows.logits + row * rows.vocab;
}

// Lists the active rows in `places` and returns their number.
int list_wanted(const ChooseRows& rows) {
  int count = 0;
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    if (rows.wanted[row]) rows.places[count++] = static_cast<std::int32_t>(row);
  }
  return count;
}

// Runs f(row, block) for every block of every active row. The first blocks of all rows go first: a
// thread then gets the part of the vocabulary whose logits it computed itself.
template <class F>
void for_blocks(const ChooseRows& rows, int wanted, const F& f) {
  const std::int64_t blocks = blocks_of(rows.vocab, CHOOSE_BLOCK);
  parallel_for(static_cast<int>(wanted * blocks), [&](int part) {
    f(static_cast<std::int64_t>(rows.places[part % wanted]), std::int64_t{part / wanted});
  });
}

// Runs f(row) for every active row.
template <class F>
void for_rows(const ChooseRows& rows, int wanted, const F& f) {
  parallel_for(wanted, [&](int part) { f(static_cast<std::int64_t>(rows.places[part])); });
}

// A block of a row.
struct Block {
  const float* x;
  std::int64_t count;

  Block(const ChooseRows& rows, std::int64_t row, std::int64_t block)
      : x(row_of(rows, row) + block * CHOOSE_BLOCK),
        count(std::min<std::int64_t>(rows.vocab - block * CHOOSE_BLOCK, CHOOSE_BLOCK)) {}
};

// ---- weights

float scale_of(float heat) { return CHOOSE_LOG2E / heat; }
float log_of(double total) { return static_cast<float>(std::log(total)); }

// Computes the sums of all active rows and, if `maxima` is set, the maximum of each group.
void add_weights(const ChooseWeights& call, int wanted, float* maxima) {
  const std::int64_t spans = blocks_of(call.rows.vocab, CHOOSE_SPAN);
  const std::int64_t groups = blocks_of(call.rows.vocab, CHOOSE_GROUP);
  for_blocks(call.rows, wanted, [&](std::int64_t row, std::int64_t index) {
    const Block block(call.rows, row, index);
    float* sums = call.sums + row * spans + index * (CHOOSE_BLOCK / CHOOSE_SPAN);
    const std::int64_t group = row * groups + index * (CHOOSE_BLOCK / CHOOSE_GROUP);
    body().add(block.x, block.count, call.best[row], scale_of(call.heat[row]), sums,
               maxima == nullptr ? nullptr : maxima + group);
  });
}

// Returns the first place with weight at which the sum of the weights exceeds the target. Rounding
// may leave the target past the end; then it returns the last place with weight. `below` becomes
// the sum of the weights before the place.
std::int64_t first_past(const float* weights, std::int64_t count, double target, double* below) {
  std::int64_t last = 0;
  double reached = 0.0;
  *below = 0.0;
  for (std::int64_t each = 0; each < count; ++each) {
    if (!(weights[each] > 0.0f)) continue;
    last = each;
    *below = reached;
    reached += weights[each];
    if (reached > target) break;
  }
  return last;
}

std::int64_t draw_row(const ChooseDraw& call, std::int64_t row) {
  const ChooseWeights& weights = call.weights;
  const std::int64_t vocab = weights.rows.vocab, spans = blocks_of(vocab, CHOOSE_SPAN);
  const float* sums = weights.sums + row * spans;
  const double total = choose_total(sums, spans), target = call.chance[row] * total;
  weights.log_total[row] = log_of(total);
  double below = 0.0, rest = 0.0;
  const std::int64_t first = first_past(sums, spans, target, &below) * CHOOSE_SPAN;
  const std::int64_t count = std::min<std::int64_t>(vocab - first, CHOOSE_SPAN);
  float each[CHOOSE_SPAN];
  body().weigh(row_of(weights.rows, row) + first, count, weights.best[row],
               scale_of(weights.heat[row]), each);
  return first + first_past(each, count, target - below, &rest);
}

// ---- candidates

struct Ranked {
  std::uint32_t key;  // smaller for larger logits
  std::int32_t id;
};

std::uint32_t key_of(float x) {
  const std::uint32_t bits = bits_of(x + 0.0f);  // -0 is 0
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

float logit_of(std::uint32_t key) {
  return float_of((key & 0x80000000u) != 0 ? key : ~key & 0x7fffffffu);
}

// Sorts by key, keeping the order of equal keys; `other` is scratch of the same length. Returns the
// array that has the result.
Ranked* sort(Ranked* ranked, Ranked* other, std::int64_t count) {
  constexpr int digits = 4, values = 256;
  std::uint32_t begins[digits][values] = {};
  for (std::int64_t each = 0; each < count; ++each) {
    for (int digit = 0; digit < digits; ++digit) {
      ++begins[digit][ranked[each].key >> 8 * digit & 0xff];
    }
  }
  for (int digit = 0; digit < digits; ++digit) {
    std::uint32_t* begin = begins[digit];
    if (begin[ranked[0].key >> 8 * digit & 0xff] == count) continue;  // the same digit in all keys
    std::uint32_t total = 0;
    for (int value = 0; value < values; ++value) {
      const std::uint32_t here = begin[value];
      begin[value] = total;
      total += here;
    }
    for (std::int64_t each = 0; each < count; ++each) {
      other[begin[ranked[each].key >> 8 * digit & 0xff]++] = ranked[each];
    }
    std::swap(ranked, other);
  }
  return ranked;
}

// Scratch memory of the calling thread for ranking one row.
struct Room {
  Ranked *list, *other;  // one entry per logit of the row
  float* values;         // one entry per logit of the row
  std::int32_t* ids;     // the same and CHOOSE_SPARE
  std::int32_t* open;    // one entry per group

  Room(std::int64_t vocab, std::int64_t groups) {
    const std::int64_t numbers = 6 * vocab + CHOOSE_SPARE + groups;
    unsigned char* bytes = scratch(static_cast<std::size_t>(numbers) * sizeof(std::int32_t), Scratch::call);
    if (bytes == nullptr) std::abort();  // out of memory; a worker cannot report an error
    list = reinterpret_cast<Ranked*>(bytes);
    other = list + vocab;
    values = reinterpret_cast<float*>(other + vocab);
    ids = reinterpret_cast<std::int32_t*>(values + vocab);
    open = ids + vocab + CHOOSE_SPARE;
  }
};

// Returns the largest value that at least `count` numbers reach, or a smaller one that at most
// `spare` more reach; no number is above `most`. Bisects the space of all floats, so that the time
// does not depend on the order of the numbers.
float reached_by(const float* x, std::int64_t numbers, std::int64_t count, std::int64_t spare,
                 float most) {
  std::uint32_t above = key_of(most), least = key_of(kNothing);
  while (above < least) {
    const std::uint32_t middle = above + (least - above) / 2;
    const std::int64_t reaching = body().reaching(x, numbers, logit_of(middle));
    if (reaching < count) {
      above = middle + 1;
    } else {
      least = middle;
      if (reaching <= count + spare) break;
    }
  }
  return logit_of(least);
}

// Lists the groups whose maximum reaches `least`.
ChooseOpen open_groups(const float* maxima, std::int64_t groups, float least, std::int32_t* open) {
  std::int64_t count = 0;
  for (std::int64_t group = 0; group < groups; ++group) {
    open[count] = static_cast<std::int32_t>(group);
    count += maxima[group] >= least;  // no branch: it would be unpredictable
  }
  return {open, count};
}

// Lists, by id, the logits that may be among the best `count` of a row; returns their number.
std::int64_t list_best(const ChooseCandidates& call, std::int64_t row, const Room& room) {
  const ChooseRows& rows = call.weights.rows;
  const std::int64_t groups = blocks_of(rows.vocab, CHOOSE_GROUP), count = call.count;
  const float* x = row_of(rows, row);
  const float* maxima = call.maxima + row * groups;
  const float best = call.weights.best[row];
  // At least `count` groups reach `low`, hence at least `count` logits.
  const float low = groups < count ? kNothing : reached_by(maxima, groups, count, count / 8, best);
  const ChooseOpen open = open_groups(maxima, groups, low, room.open);
  std::int64_t found = body().collect(x, rows.vocab, open, low, count, room.ids);
  // A row with NaN may yield fewer ids; its result is not used, but must be defined.
  for (; found < count; ++found) room.ids[found] = 0;
  for (std::int64_t each = 0; each < found; ++each) room.values[each] = x[room.ids[each]];
  const float least = reached_by(room.values, found, count, 0, best);
  const std::uint32_t first = key_of(best);
  std::int64_t left = 0;
  for (std::int64_t each = 0; each < found; ++each) {
    room.list[left] = {key_of(room.values[each]) - first, room.ids[each]};
    left += !(room.values[each] < least);
  }
  return left;
}

void rank_row(const ChooseCandidates& call, std::int64_t row) {
  const ChooseWeights& weights = call.weights;
  const std::int64_t vocab = weights.rows.vocab, spans = blocks_of(vocab, CHOOSE_SPAN);
  weights.log_total[row] = log_of(choose_total(weights.sums + row * spans, spans));
  const Room room(vocab, blocks_of(vocab, CHOOSE_GROUP));
  const Ranked* ranked = sort(room.list, room.other, list_best(call, row, room));
  const float* x = row_of(weights.rows, row);
  const float best = weights.best[row], heat = weights.heat[row];
  for (std::int64_t each = 0; each < call.count; ++each) {
    call.ids[row * call.count + each] = ranked[each].id;
    call.relative[row * call.count + each] = (x[ranked[each].id] - best) / heat;
  }
}

}  // namespace

double choose_total(const float* weights, std::int64_t count) {
  double total = 0.0;
  for (std::int64_t each = 0; each < count; ++each) total += weights[each];
  return total;
}

void choose_copy(const ChooseCopy& call) {
  const ChooseRows& rows = call.rows;
  for_blocks(rows, list_wanted(rows), [&](std::int64_t row, std::int64_t index) {
    const Block block(rows, row, index);
    std::copy_n(block.x, block.count, call.copy + (block.x - rows.logits));
  });
}

void choose_survey(const ChooseSurvey& call) {
  const ChooseRows& rows = call.rows;
  const std::int64_t blocks = blocks_of(rows.vocab, CHOOSE_BLOCK);
  std::fill_n(call.token, rows.rows, 0);
  std::fill_n(call.best, rows.rows, 0.0f);
  std::fill_n(call.sound, rows.rows, true);
  const int wanted = list_wanted(rows);
  for_blocks(rows, wanted, [&](std::int64_t row, std::int64_t index) {
    const Block block(rows, row, index);
    const ChooseExtent extent = body().survey(block.x, block.count);
    float* partial = call.partials + (row * blocks + index) * 2;
    partial[0] = extent.most;
    partial[1] = extent.sound ? 1.0f : 0.0f;
  });
  for (int each = 0; each < wanted; ++each) {
    const std::int64_t row = rows.places[each];
    const float* partials = call.partials + row * blocks * 2;
    std::int64_t where = 0;
    for (std::int64_t block = 0; block < blocks; ++block) {
      if (partials[block * 2] > partials[where * 2]) where = block;
      if (partials[block * 2 + 1] == 0.0f) call.sound[row] = false;
    }
    call.best[row] = partials[where * 2];
    const Block block(rows, row, where);
    const std::int64_t place = body().find(block.x, block.count, call.best[row]);
    // A row of NaN has no such place.
    if (place < block.count) {
      call.token[row] = static_cast<std::int32_t>(where * CHOOSE_BLOCK + place);
    }
  }
}

void choose_candidates(const ChooseCandidates& call) {
  const ChooseRows& rows = call.weights.rows;
  std::fill_n(call.ids, rows.rows * call.count, 0);
  std::fill_n(call.relative, rows.rows * call.count, 0.0f);
  std::fill_n(call.weights.log_total, rows.rows, 0.0f);
  const int wanted = list_wanted(rows);
  add_weights(call.weights, wanted, call.maxima);
  for_rows(rows, wanted, [&](std::int64_t row) { rank_row(call, row); });
}

void choose_draw(const ChooseDraw& call) {
  const ChooseRows& rows = call.weights.rows;
  std::fill_n(call.token, rows.rows, 0);
  std::fill_n(call.weights.log_total, rows.rows, 0.0f);
  const int wanted = list_wanted(rows);
  add_weights(call.weights, wanted, nullptr);
  for_rows(rows, wanted, [&](std::int64_t row) {
    call.token[row] = static_cast<std::int32_t>(draw_row(call, row));
  });
}

void choose_logprob(const ChooseLogprob& call) {
  const ChooseRows& rows = call.rows;
  const std::int64_t blocks = blocks_of(rows.vocab, CHOOSE_BLOCK);
  std::fill_n(call.logprob, rows.rows, 0.0f);
  const int wanted = list_wanted(rows);
  for_blocks(rows, wanted, [&](std::int64_t row, std::int64_t index) {
    const Block block(rows, row, index);
    float sums[CHOOSE_BLOCK / CHOOSE_SPAN];
    const float most = body().survey(block.x, block.count).most;
    body().add(block.x, block.count, most, CHOOSE_LOG2E, sums, nullptr);
    float* partial = call.partials + (row * blocks + index) * 2;
    partial[0] = most;
    partial[1] = static_cast<float>(choose_total(sums, blocks_of(block.count, CHOOSE_SPAN)));
  });
  for (int each = 0; each < wanted; ++each) {
    const std::int64_t row = rows.places[each];
    const float* partials = call.partials + row * blocks * 2;
    float best = kNothing;
    double total = 0.0;
    for (std::int64_t block = 0; block < blocks; ++block) best = std::max(best, partials[block * 2]);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const float most = partials[block * 2];
      // A block in which all tokens are banned has no weight.
      if (most > kNothing) total += static_cast<double>(partials[block * 2 + 1]) * std::exp(most - best);
    }
    call.logprob[row] = row_of(rows, row)[call.token[row]] - best - log_of(total);
  }
}

}  // namespace jaxllama
