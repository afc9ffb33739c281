// Runs the choosing kernels over random shapes and holds them against sums in double precision.
//
// Built with sanitizers by test_build.py: every array is exactly as long as promised, so a kernel
// that reads or writes one element too many is caught. With an argument it plants such an error.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "choose.h"
#include "digest.h"
#include "places.h"
#include "pool.h"
#include "ranks.h"

extern "C" int jaxllama_set_isa(const char* name);

using namespace jaxllama;

namespace {

std::mt19937 noise(11);

int64_t within(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(noise);
}
float normal() { return std::normal_distribution<float>()(noise); }
float uniform() { return std::uniform_real_distribution<float>(0.0f, 1.0f)(noise); }

size_t pieces(int64_t count, int64_t size) { return static_cast<size_t>((count + size - 1) / size); }

// Rows of logits, what is asked of them, and room for every answer.
struct Case {
  int64_t rows, vocab, count;
  std::vector<float> logits, heat, chance, partials, sums, maxima;
  std::vector<float> best, log_total, relative, logprob;
  std::vector<int32_t> places, token, ids;
  std::unique_ptr<bool[]> wanted, sound;

  Case(int64_t rows, int64_t vocab, int64_t count)
      : rows(rows), vocab(vocab), count(count), wanted(new bool[rows]), sound(new bool[rows]) {
    const auto size = static_cast<size_t>(rows);
    const float grain = within(0, 1) == 0 ? 1e6f : 2.0f;  // coarse: many are equal
    for (int64_t each = 0; each < rows * vocab; ++each) {
      const float x = std::round(normal() * grain) / grain;
      logits.push_back(within(0, 9) == 0 ? -INFINITY : x);
    }
    for (int64_t row = 0; row < rows; ++row) {
      logits[row * vocab + within(0, vocab - 1)] = 1.0f;
      heat.push_back(0.3f + uniform());
      chance.push_back(uniform());
      wanted[row] = within(0, 3) != 0;
    }
    for (auto* each : {&logits, &heat, &chance}) each->shrink_to_fit();
    partials.resize(size * pieces(vocab, CHOOSE_BLOCK) * 2);
    sums.resize(size * pieces(vocab, CHOOSE_SPAN));
    maxima.resize(size * pieces(vocab, CHOOSE_GROUP));
    for (auto* each : {&best, &log_total, &logprob}) each->resize(size);
    places.resize(size);
    token.resize(size);
    ids.resize(size * static_cast<size_t>(count));
    relative.resize(ids.size());
  }

  ChooseRows asked() { return {logits.data(), wanted.get(), rows, vocab, places.data()}; }
  ChooseWeights weights() {
    return {asked(), best.data(), heat.data(), sums.data(), log_total.data()};
  }

  // The share of ids up to and including this one.
  double share(int64_t row, int64_t last) const {
    double part = 0, total = 0;
    for (int64_t id = 0; id < vocab; ++id) {
      const double weight = std::exp((logits[row * vocab + id] - 1.0 * best[row]) / heat[row]);
      total += weight;
      if (id <= last) part += weight;
    }
    return part / total;
  }

  bool surveyed(int64_t row) const {
    const float* x = &logits[row * vocab];
    const float* most = std::max_element(x, x + vocab);
    return sound[row] && best[row] == *most && token[row] == most - x;
  }

  bool ranked(int64_t row) const {
    const float* x = &logits[row * vocab];
    std::vector<int32_t> order(static_cast<size_t>(vocab));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    return std::equal(order.begin(), order.begin() + count, ids.begin() + row * count);
  }

  bool drawn(int64_t row) const {
    const double above = share(row, token[row]), below = share(row, token[row] - 1);
    return below - 1e-5 <= chance[row] && chance[row] <= above + 1e-5 && above > below;
  }

  bool weighed(int64_t row) const {
    double total = 0;
    for (int64_t id = 0; id < vocab; ++id) {
      total += std::exp(logits[row * vocab + id] - 1.0 * best[row]);
    }
    const double right = logits[row * vocab + token[row]] - best[row] - std::log(total);
    return right == logprob[row] || std::abs(right - logprob[row]) < 1e-4;
  }
};

bool sound(int64_t rows, int64_t vocab, int64_t count, Digest& digest) {
  Case one(rows, vocab, count);
  choose_survey({one.asked(), one.partials.data(), one.token.data(), one.best.data(),
                 one.sound.get()});
  bool all = true;
  const auto check = [&](bool (Case::*is_right)(int64_t) const) {
    for (int64_t row = 0; row < rows; ++row) all &= !one.wanted[row] || (one.*is_right)(row);
  };
  check(&Case::surveyed);
  choose_candidates({one.weights(), one.maxima.data(), count, one.ids.data(),
                     one.relative.data()});
  check(&Case::ranked);
  choose_draw({one.weights(), one.chance.data(), one.token.data()});
  check(&Case::drawn);
  choose_logprob({one.asked(), one.token.data(), one.partials.data(), one.logprob.data()});
  check(&Case::weighed);
  digest.add(one.token);
  digest.add(one.relative);
  digest.add(one.logprob);
  return all;
}

// Whether the wanted rows are copied.
bool copied(int64_t rows, int64_t vocab) {
  Case one(rows, vocab, 1);
  std::vector<float> copy(one.logits.size());
  choose_copy({one.asked(), copy.data()});
  bool all = true;
  for (int64_t each = 0; each < rows * vocab; ++each) {
    all &= !one.wanted[each / vocab] || copy[each] == one.logits[each];
  }
  return all;
}

// Whether every place is told where its token comes first and what its logit is, and whether what is
// put there arrives.
bool placed(int64_t rows, int64_t columns, int64_t vocab) {
  const auto size = static_cast<size_t>(rows * columns);
  std::vector<int32_t> tokens, counts, first(size);
  std::vector<float> logits(static_cast<size_t>(rows * vocab)), held(size);
  std::unique_ptr<bool[]> sound(new bool[rows]);
  for (float& each : logits) each = normal();
  for (int64_t each = 0; each < rows * columns; ++each) {
    tokens.push_back(static_cast<int32_t>(within(-1, vocab)));
  }
  for (int64_t row = 0; row < rows; ++row) {
    counts.push_back(static_cast<int32_t>(within(-1, columns + 1)));
  }
  for (auto* each : {&tokens, &counts}) each->shrink_to_fit();
  take_held({logits.data(), tokens.data(), counts.data(), rows, columns, vocab, first.data(),
             held.data(), sound.get()});
  for (int64_t each = 0; each < rows * columns; ++each) {
    const int64_t row = each / columns;
    const auto begin = tokens.begin() + row * columns, here = tokens.begin() + each;
    const bool counts_here = each % columns < counts[row] && *here >= 0 && *here < vocab;
    const int64_t right = counts_here ? std::find(begin, here, *here) - begin : columns;
    const auto place = static_cast<size_t>(each);
    if (first[place] != right || !sound[row]) return false;
    if (held[place] != (counts_here ? logits[row * vocab + *here] : 0.0f)) return false;
    held[place] = static_cast<float>(each);
  }
  put_held({tokens.data(), first.data(), held.data(), rows, columns, vocab, logits.data()});
  for (int64_t each = 0; each < rows * columns; ++each) {
    const int64_t row = each / columns, place = first[static_cast<size_t>(each)];
    if (place == columns) continue;
    if (logits[row * vocab + tokens[each]] != static_cast<float>(row * columns + place)) return false;
  }
  return true;
}

// Whether survivors move to the front, and their shares are all there is.
bool closed(int64_t rows, int64_t width) {
  const auto size = static_cast<size_t>(rows * width);
  std::vector<int32_t> ids(size), last(static_cast<size_t>(rows));
  std::vector<float> logits(size), shares(size), log_total(static_cast<size_t>(rows));
  std::unique_ptr<bool[]> keep(new bool[size]), on(new bool[rows]);
  std::vector<int64_t> survivors(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    on[row] = within(0, 3) != 0;
    const int64_t alive = within(0, width);
    float logit = 0.0f;
    for (int64_t place = 0; place < width; ++place) {
      const int64_t each = row * width + place;
      ids[each] = static_cast<int32_t>(place);
      logits[each] = place < alive ? logit -= uniform() : -INFINITY;
      keep[each] = within(0, 2) == 0;
      survivors[row] += keep[each] && place < alive;
    }
    if (survivors[row] == 0) survivors[row] = alive;
  }
  close_ranks({keep.get(), on.get(), rows, width, ids.data(), logits.data(), shares.data(),
               log_total.data(), last.data()});
  for (int64_t row = 0; row < rows; ++row) {
    if (!on[row] || survivors[row] == 0) continue;
    double total = 0;
    for (int64_t place = 0; place < width; ++place) {
      const int64_t each = row * width + place;
      const bool is_left = place < survivors[row];
      if ((logits[each] > -INFINITY) != is_left || (shares[each] > 0) != is_left) return false;
      total += shares[each];
    }
    if (std::abs(total - 1) > 1e-4 || last[row] != ids[row * width + survivors[row] - 1]) return false;
  }
  return true;
}

void plant() {
  Case one(1, 100, 1);
  one.wanted[0] = true;
  ChooseRows rows = one.asked();
  rows.vocab = 101;
  choose_survey({rows, one.partials.data(), one.token.data(), one.best.data(), one.sound.get()});
}

}  // namespace

int main(int count, char**) {
  if (count > 1) plant();
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    if (!jaxllama_set_isa(isa)) continue;
    Digest digest;
    for (int round = 0; round < 40; ++round) {
      set_threads(static_cast<int>(within(1, 3)));
      const int64_t rows = within(1, 4), vocab = within(1, round % 4 == 0 ? 9000 : 400);
      const int64_t most = within(1, round % 3 == 0 ? vocab : std::min<int64_t>(vocab, 20));
      if (!sound(rows, vocab, most, digest) || !copied(rows, vocab) ||
          !placed(rows, within(1, 300), vocab) || !closed(rows, within(1, 50))) {
        std::printf("%s: wrong for %d rows of %d, best %d\n", isa, static_cast<int>(rows),
                    static_cast<int>(vocab), static_cast<int>(most));
        return 1;
      }
    }
    digest.print(isa);
  }
  return 0;
}
