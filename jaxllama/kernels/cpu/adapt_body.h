// The adapter kernel, written once over the vectors of an instruction set: included after
// matmul_body.h, whose functions it uses.

// Loads sixteen float16 numbers; numbers past the end are zero.
inline F load_half_part(const uint16_t* from, int64_t left) {
  if (left >= kHalf) return load_half(from);
  uint16_t part[kHalf] = {};
  for (int64_t each = 0; each < left; ++each) part[each] = from[each];
  return load_half(part);
}

// Multiplies the inputs of a row by V vectors of columns of A. Each column has four sums, which
// take turns: one would wait for itself.
template <int V>
inline void into_ranks(const uint16_t* a, const Rows& rows, const float* x, float root,
                       int64_t lanes, float scale, float* ranks) {
  F sums[V][4];
  UNROLL for (int v = 0; v < V; ++v) {
    UNROLL for (int turn = 0; turn < 4; ++turn) sums[v][turn] = zero();
  }
  for (int64_t k = 0; k < rows.width; k += kHalf) {
    float inputs[kHalf];
    store(inputs, read_inputs(rows, x, root, k));
    const int64_t left = rows.width - k < kHalf ? rows.width - k : kHalf;
    if (left == kHalf) {
      UNROLL for (int each = 0; each < kHalf; ++each) {
        UNROLL for (int v = 0; v < V; ++v) {
          const F weight = load_half(a + (k + each) * lanes + v * kHalf);
          sums[v][each % 4] = fma(set(inputs[each]), weight, sums[v][each % 4]);
        }
      }
      continue;
    }
    for (int64_t each = 0; each < left; ++each) {
      UNROLL for (int v = 0; v < V; ++v) {
        const F weight = load_half(a + (k + each) * lanes + v * kHalf);
        sums[v][each % 4] = fma(set(inputs[each]), weight, sums[v][each % 4]);
      }
    }
  }
  UNROLL for (int v = 0; v < V; ++v) {
    const F total = add(add(sums[v][0], sums[v][1]), add(sums[v][2], sums[v][3]));
    store(ranks + v * kHalf, mul(total, set(scale)));
  }
}

// Multiplies the ranks of a row by B.
inline void out_of_ranks(const uint16_t* b, const float* ranks, int64_t rank, int64_t outward,
                         float* y) {
  constexpr int kVectors = 4;
  int64_t at = 0;
  for (; at + kVectors * kHalf <= outward; at += kVectors * kHalf) {
    F sums[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = zero();
    for (int64_t each = 0; each < rank; ++each) {
      const F one = set(ranks[each]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        sums[v] = fma(one, load_half(b + each * outward + at + v * kHalf), sums[v]);
      }
    }
    UNROLL for (int v = 0; v < kVectors; ++v) store(y + at + v * kHalf, sums[v]);
  }
  for (; at < outward; at += kHalf) {
    F total = zero();
    for (int64_t each = 0; each < rank; ++each) {
      const F weight = load_half_part(b + each * outward + at, outward - at);
      total = fma(set(ranks[each]), weight, total);
    }
    store_part(y + at, total, outward - at);
  }
}

void adapt(const Adapters& adapters, const Rows& rows, int64_t row, int64_t adapter, float scale,
           float* y) {
  alignas(64) float ranks[kMostParts * kMostRank];
  const int64_t lanes = adapters.parts * adapters.rank;
  const uint16_t* a = adapters.a + adapter * rows.width * lanes;
  const float* x = rows.x + row * rows.width;
  const float root = rows.norm == nullptr ? 1.0f : inverse_root(rows, x);
  int64_t lane = 0;
  for (; lane + 3 * kHalf <= lanes; lane += 3 * kHalf) {
    into_ranks<3>(a + lane, rows, x, root, lanes, scale, ranks + lane);
  }
  for (; lane < lanes; lane += kHalf) {
    into_ranks<1>(a + lane, rows, x, root, lanes, scale, ranks + lane);
  }
  for (int64_t part = 0; part < adapters.parts; ++part) {
    const int64_t outward = adapters.outward[part];
    const uint16_t* b = adapters.b[part] + adapter * adapters.rank * outward;
    out_of_ranks(b, ranks + part * adapters.rank, adapters.rank, outward, y);
    y += outward;
  }
}
