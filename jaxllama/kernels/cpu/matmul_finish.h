// The outputs of a matmul: bias, activation and residual, and where they are written.
//
// Included by matmul_body.h.

// Below this x, e^-x overflows float32, and the sigmoid of x is practically zero.
constexpr float kLowest = -87.0f;

// Computes e^-x for x of at least kLowest to a few units in the last place; never below e^-87.
inline Vec exponential_of_minus(Vec x) {
  x = at_least(sub(zero(), x), kLowest);
  const Vec whole = round_even(mul(x, set(1.44269504f)));
  Vec rest = fma(whole, set(-0.693359375f), x);
  rest = fma(whole, set(2.12194440e-4f), rest);
  Vec p = set(1.9875691500e-4f);
  p = fma(p, rest, set(1.3981999507e-3f));
  p = fma(p, rest, set(8.3334519073e-3f));
  p = fma(p, rest, set(4.1665795894e-2f));
  p = fma(p, rest, set(1.6666665459e-1f));
  p = fma(p, rest, set(5.0000001201e-1f));
  p = fma(p, mul(rest, rest), add(rest, set(1.0f)));
  return times_power(p, whole);
}

inline Vec swiglu(Vec gate, Vec value) {
  gate = at_least(gate, kLowest);
  return mul(divide(gate, add(set(1.0f), exponential_of_minus(gate))), value);
}

// Adds sixteen numbers of the residual of a row, if there is one.
inline Vec with_residual(const Finish& finish, int64_t row, int64_t at, int64_t left, Vec value) {
  if (finish.residual == nullptr) return value;
  return add(load_part(finish.residual + row * added_width(finish) + at, left), value);
}

// Writes sixteen finished outputs of a row, from output `at` on.
inline void put(const Finish& finish, int64_t row, int64_t at, Vec value) {
  const int64_t left = finish.outward - at;
  if (left <= 0) return;
  store_part(finish.y + row * finish.outward + at, with_residual(finish, row, at, left, value),
             left);
}

// Writes sixteen outputs of a gated feed-forward.
inline void put_gated(const Finish& finish, int64_t row, int64_t at, Vec gate, Vec value) {
  const int64_t left = finish.outward - at;
  if (left <= 0) return;
  gate = with_residual(finish, row, at, left, gate);
  value = with_residual(finish, row, finish.outward + at, left, value);
  store_part(finish.y + row * finish.outward + at, swiglu(gate, value), left);
}

// Finishes the two halves of a tile of outputs of one row.
inline void finish_row(const Finish& finish, int64_t tile, int64_t row, Vec first, Vec second) {
  const int64_t at = tile * kTile;
  if (finish.bias != nullptr) {
    first = add(first, load(finish.bias + at));
    second = add(second, load(finish.bias + at + kHalf));
  }
  if (finish.swiglu) {
    put_gated(finish, row, tile * kHalf, first, second);
  } else {
    put(finish, row, at, first);
    put(finish, row, at + kHalf, second);
  }
}

// Prefetches the outputs of a band before its sums are computed: other cores used them last.
template <int N>
inline void expect_outputs(const Finish& finish, int64_t tile, Band band) {
  constexpr int per_line = 64 / sizeof(float);
  const int64_t outputs = finish.swiglu ? kHalf : kTile;
  const int64_t end = (tile + 1) * outputs < finish.outward ? (tile + 1) * outputs : finish.outward;
  for (int r = 0; r < N; ++r) {
    for (int64_t at = tile * outputs; at < end; at += per_line) {
      const int64_t place = (band.first + r) * finish.outward + at;
      __builtin_prefetch(finish.y + place, 1);
      if (finish.residual != nullptr && !finish.swiglu) __builtin_prefetch(finish.residual + place);
    }
  }
}
