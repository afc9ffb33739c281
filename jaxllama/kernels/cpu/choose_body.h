// The functions of ChooseBody, written once for every instruction set.
//
// Included by choose_portable.cc, choose_avx2.cc and choose_avx512.cc after they have defined their
// vectors: WIDTH, Vec, Flags, load, set, add, sub, mul, fma, larger, at_least, round_even,
// times_power, highest, sum, no_flags, note_unsound, is_any, bits_at_least, bits_above, put_places.
// All code is in an unnamed namespace, as isa.h requires. `best` is at least as large as any logit;
// if `best` is NaN, results are NaN, but no memory access goes wrong.

constexpr std::int64_t GROUP = CHOOSE_GROUP, SPAN = CHOOSE_SPAN;
constexpr int SUMS = 4;  // parallel sums: a single one would wait for its previous addition
constexpr int LINE = 16;  // floats of a cache line
constexpr int AHEAD = 16;  // groups to prefetch
constexpr float NOTHING = -__builtin_inff();

// Loads the vector at a place; lanes after the last of `count` numbers are -inf.
inline Vec load_some(const float* x, std::int64_t at, std::int64_t count) {
  if (at + WIDTH <= count) return load(x + at);
  float part[WIDTH];
  for (int i = 0; i < WIDTH; ++i) part[i] = at + i < count ? x[at + i] : NOTHING;
  return load(part);
}

// Computes 2^x for x <= 0; results below 2^-126 are 0.
inline Vec exp2_of(Vec x) {
  x = at_least(x, -200.0f);
  const Vec power = round_even(x), rest = sub(x, power);
  // The minimax polynomial of this degree on -0.5..0.5; its error is at most 2e-7.
  Vec y = set(1.327647245e-3f);
  y = fma(y, rest, set(9.675540961e-3f));
  y = fma(y, rest, set(5.550713092e-2f));
  y = fma(y, rest, set(2.402212024e-1f));
  y = fma(y, rest, set(6.931469440e-1f));
  y = fma(y, rest, set(1.0f));
  return times_power(y, power);
}

ChooseExtent survey(const float* x, std::int64_t count) {
  Vec most[SUMS];
  Flags unsound = no_flags();
  for (Vec& each : most) each = set(NOTHING);
  for (std::int64_t at = 0; at < count; at += SUMS * WIDTH) {
#pragma GCC unroll 4
    for (int i = 0; i < SUMS; ++i) {
      const Vec here = load_some(x, at + i * WIDTH, count);
      most[i] = larger(here, most[i]);
      unsound = note_unsound(unsound, here);
    }
  }
  const Vec one = larger(most[0], most[1]), other = larger(most[2], most[3]);
  return {highest(larger(one, other)), !is_any(unsound)};
}

std::int64_t find(const float* x, std::int64_t count, float value) {
  for (std::int64_t at = 0; at < count; at += WIDTH) {
    const unsigned hits = bits_at_least(load_some(x, at, count), set(value));
    // Lanes after the last number are -inf, which may be the value searched for.
    if (hits != 0) return at + __builtin_ctz(hits) < count ? at + __builtin_ctz(hits) : count;
  }
  return count;
}

inline Vec weight_of(Vec x, float best, float scale) {
  return exp2_of(mul(sub(x, set(best)), set(scale)));
}

void weigh(const float* x, std::int64_t count, float best, float scale, float* weights) {
  for (std::int64_t at = 0; at < count; at += WIDTH) {
    float part[WIDTH];
    store(part, weight_of(load_some(x, at, count), best, scale));
    for (int i = 0; i < WIDTH && at + i < count; ++i) weights[at + i] = part[i];
  }
}

template <bool ranked>
inline void add_by_spans(const float* x, std::int64_t count, float best, float scale, float* sums,
                         float* maxima) {
  for (std::int64_t first = 0; first < count; first += SPAN) {
    const std::int64_t end = first + SPAN < count ? first + SPAN : count;
    Vec total[SUMS];
    for (Vec& each : total) each = set(0.0f);
    for (std::int64_t group = first; group < end; group += GROUP) {
      Vec most = set(NOTHING);
#pragma GCC unroll 4
      for (int i = 0; i < GROUP / WIDTH; ++i) {
        const Vec here = load_some(x, group + i * WIDTH, count);
        total[i % SUMS] = add(total[i % SUMS], weight_of(here, best, scale));
        if constexpr (ranked) most = larger(here, most);
      }
      if constexpr (ranked) maxima[group / GROUP] = highest(most);
    }
    sums[first / SPAN] = sum(add(add(total[0], total[1]), add(total[2], total[3])));
  }
}

void add_weights(const float* x, std::int64_t count, float best, float scale, float* sums,
                 float* maxima) {
  if (maxima == nullptr) {
    add_by_spans<false>(x, count, best, scale, sums, maxima);
  } else {
    add_by_spans<true>(x, count, best, scale, sums, maxima);
  }
}

std::int64_t reaching(const float* x, std::int64_t count, float least) {
  std::int64_t found = 0;
  for (std::int64_t at = 0; at < count; at += WIDTH) {
    unsigned hits = bits_at_least(load_some(x, at, count), set(least));
    // Lanes after the last number are -inf, which may be the value searched for.
    if (count - at < WIDTH) hits &= (1u << (count - at)) - 1;
    found += __builtin_popcount(hits);
  }
  return found;
}

std::int64_t collect(const float* x, std::int64_t count, const ChooseOpen& open, float least,
                     std::int64_t ties, std::int32_t* ids) {
  std::int64_t found = 0;
  for (std::int64_t each = 0; each < open.count; ++each) {
    // Open groups lie far apart, so that the processor cannot prefetch them by itself.
    const std::int64_t later = each + AHEAD < open.count ? each + AHEAD : each;
    for (std::int64_t at = 0; at < GROUP; at += LINE) {
      __builtin_prefetch(x + open.groups[later] * GROUP + at);
    }
    const std::int64_t first = open.groups[each] * GROUP;
    const std::int64_t end = first + GROUP < count ? first + GROUP : count;
    const bool has_ties = ties > 0;
    for (std::int64_t at = first; at < end; at += WIDTH) {
      const Vec here = load_some(x, at, count);
      const unsigned above = bits_above(here, set(least));
      unsigned hits = has_ties ? bits_at_least(here, set(least)) : above;
      if (end - at < WIDTH) hits &= (1u << (end - at)) - 1;
      ties -= __builtin_popcount(hits & ~above);
      put_places(ids + found, at, hits);
      found += __builtin_popcount(hits);
    }
  }
  return found;
}
