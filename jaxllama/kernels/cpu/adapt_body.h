// The adapter kernel, written once over the vectors of an instruction set: included after
// matmul_body.h, whose functions it uses.

// Loads sixteen float16 numbers; numbers past the end are zero.
inline Vec load_half_part(const uint16_t* from, int64_t left) {
  if (left >= kHalf) return load_half(from);
  uint16_t part[kHalf] = {};
  for (int64_t each = 0; each < left; ++each) part[each] = from[each];
  return load_half(part);
}

// Multiplies the inputs of N rows by sixteen columns of A. Each row has four sums, which take turns:
// one would wait for itself.
template <int N>
inline void into_ranks(const uint16_t* a, const Rows& rows, const float* const (&x)[N],
                       const float (&root)[N], int64_t lanes, const float (&scale)[N],
                       float* const (&ranks)[N]) {
  Vec sums[N][4];
  UNROLL for (int r = 0; r < N; ++r) {
    UNROLL for (int turn = 0; turn < 4; ++turn) sums[r][turn] = zero();
  }
  for (int64_t k = 0; k < rows.width; k += kHalf) {
    float inputs[N][kHalf];
    UNROLL for (int r = 0; r < N; ++r) store(inputs[r], read_inputs(rows, x[r], root[r], k));
    const int64_t left = rows.width - k < kHalf ? rows.width - k : kHalf;
    if (left == kHalf) {
      UNROLL for (int each = 0; each < kHalf; ++each) {
        const Vec weight = load_half(a + (k + each) * lanes);
        UNROLL for (int r = 0; r < N; ++r) {
          sums[r][each % 4] = fma(set(inputs[r][each]), weight, sums[r][each % 4]);
        }
      }
      continue;
    }
    for (int64_t each = 0; each < left; ++each) {
      const Vec weight = load_half(a + (k + each) * lanes);
      UNROLL for (int r = 0; r < N; ++r) {
        sums[r][each % 4] = fma(set(inputs[r][each]), weight, sums[r][each % 4]);
      }
    }
  }
  UNROLL for (int r = 0; r < N; ++r) {
    const Vec total = add(add(sums[r][0], sums[r][1]), add(sums[r][2], sums[r][3]));
    store(ranks[r], mul(total, set(scale[r])));
  }
}

// Multiplies the ranks of N rows by B.
template <int N>
inline void out_of_ranks(const uint16_t* b, const float* const (&ranks)[N], int64_t rank,
                         int64_t outward, float* const (&y)[N]) {
  constexpr int kVectors = 4;
  int64_t at = 0;
  for (; at + kVectors * kHalf <= outward; at += kVectors * kHalf) {
    Vec sums[N][kVectors];
    UNROLL for (int r = 0; r < N; ++r) {
      UNROLL for (int v = 0; v < kVectors; ++v) sums[r][v] = zero();
    }
    for (int64_t each = 0; each < rank; ++each) {
      Vec weights[kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) {
        weights[v] = load_half(b + each * outward + at + v * kHalf);
      }
      UNROLL for (int r = 0; r < N; ++r) {
        const Vec one = set(ranks[r][each]);
        UNROLL for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(one, weights[v], sums[r][v]);
      }
    }
    UNROLL for (int r = 0; r < N; ++r) {
      UNROLL for (int v = 0; v < kVectors; ++v) store(y[r] + at + v * kHalf, sums[r][v]);
    }
  }
  for (; at < outward; at += kHalf) {
    UNROLL for (int r = 0; r < N; ++r) {
      Vec total = zero();
      for (int64_t each = 0; each < rank; ++each) {
        const Vec weight = load_half_part(b + each * outward + at, outward - at);
        total = fma(set(ranks[r][each]), weight, total);
      }
      store_part(y[r] + at, total, outward - at);
    }
  }
}

template <int N>
void adapt_some(const Adapters& adapters, const Rows& rows, const int64_t* places, int64_t adapter,
                const float* scales, int64_t total, float* y) {
  alignas(64) float room[N][kMostParts * kMostRank];
  const int64_t lanes = adapters.parts * adapters.rank;
  const uint16_t* a = adapters.a + adapter * rows.width * lanes;
  const float* x[N];
  float root[N], scale[N];
  float* to[N];
  for (int r = 0; r < N; ++r) {
    x[r] = rows.x + places[r] * rows.width;
    root[r] = rows.norm == nullptr ? 1.0f : inverse_root(rows, x[r]);
    scale[r] = scales[places[r]];
    to[r] = y + places[r] * total;
  }
  for (int64_t lane = 0; lane < lanes; lane += kHalf) {
    float* ranks[N];
    for (int r = 0; r < N; ++r) ranks[r] = room[r] + lane;
    into_ranks<N>(a + lane, rows, x, root, lanes, scale, ranks);
  }
  for (int64_t part = 0; part < adapters.parts; ++part) {
    const int64_t outward = adapters.outward[part];
    const uint16_t* b = adapters.b[part] + adapter * adapters.rank * outward;
    const float* ranks[N];
    for (int r = 0; r < N; ++r) ranks[r] = room[r] + part * adapters.rank;
    out_of_ranks<N>(b, ranks, adapters.rank, outward, to);
    for (int r = 0; r < N; ++r) to[r] += outward;
  }
}

void adapt(const Adapters& adapters, const Rows& rows, const int64_t* places, int count,
           int64_t adapter, const float* scales, int64_t total, float* y) {
  switch (count) {
#define TOGETHER(N)                                                             \
  case N:                                                                       \
    adapt_some<N>(adapters, rows, places, adapter, scales, total, y);           \
    break;
    TOGETHER(1) TOGETHER(2) TOGETHER(3) TOGETHER(4)
#undef TOGETHER
  }
}
