// The product of one tile of weights and a band of rows, for every kind of weights.
//
// Included by matmul_body.h.

template <int N>
using Sums = Vec[N][2];

// Adds the products of the outliers to the sums of a tile.
template <int bits, Scales scaling, bool minima, int N>
SEPARATE void add_apart(const Weights& weights, const Scaler<scaling, minima>& scaler,
                        const uint8_t* codes, const Apart* apart, int32_t count, Sums<N>& sums) {
  for (; count > 0; --count, ++apart) {
    const int half = bits != 8 && apart->place >= kBlock / 2 ? 1 : 0;
    const int place = apart->place - half * kBlock / 2;
    const uint8_t* from = codes + apart->block * block_bytes(kind_of(bits));
    Vec scale[2], minimum[2];
    scaler.read(bits == 6 ? apart->block * 2 + half : apart->block / weights.group, scale, minimum);
    for (int h = 0; h < 2; ++h) {
      Vec code = some_bits(from + place / 4 * 128 + h * 64, place % 4 * 8 + half * 4,
                         bits == 8 ? 128 : weights.zero, bits == 8 ? 255 : 15);
      if constexpr (bits == 5) {
        const int at = place % 4 * 8 + half * 4 + place / 4;
        code = fma(some_bits(from + kNibbles + h * 64, at, 0, 1), set(16.0f), code);
      }
      if constexpr (bits == 6) {
        const int at = place % 4 * 8 + place / 4 * 2;
        code = fma(some_bits(from + kNibbles + half * 128 + h * 64, at, 0, 3), set(16.0f), code);
      }
      Vec& sum = sums[apart->row][h];
      sum = fma(mul(scale[h], set(apart->x)), code, sum);
    }
  }
}

template <int bits, Scales scaling, bool minima, bool single, int N>
SEPARATE void multiply_packed(const Weights& weights, int64_t tile, const Prepared& from,
                              int64_t local, Sums<N>& sums) {
  constexpr size_t bytes = block_bytes(kind_of(bits));
  const int64_t blocks = weights.blocks;
  const int64_t group = single ? 1 : weights.group;
  const int64_t groups = (blocks + group - 1) / group;
  const uint8_t* codes = weights.codes + tile * blocks * bytes;
  const int8_t* inputs = reinterpret_cast<const int8_t*>(from.inputs) + local * blocks * kBlock;
  const Scale* scales = from.scales + local * blocks;
  const int32_t* starts = from.starts + local * blocks;
  const float* totals = from.sums + local * groups;
  const Scaler<scaling, minima> scaler(weights, tile, groups);

  Vec acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = zero();
  for (int64_t g = 0; g < groups; ++g) {
    Vec part[N][2];
    UNROLL for (int r = 0; r < N; ++r) part[r][0] = part[r][1] = zero();
    int64_t left = single ? 1 : (g + 1) * group <= blocks ? group : blocks - g * group;
    for (; left > 0; --left) {
      Vec dot[N][2];
      UNROLL for (size_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(codes + kAhead + line);
      }
      dots<bits, N>(codes, inputs, starts, dot);
      UNROLL for (int r = 0; r < N; ++r) {
        UNROLL for (int h = 0; h < 2; ++h) {
          const Vec found = scaled(dot[r][h], scales[r]);
          part[r][h] = single ? found : add(part[r][h], found);
        }
      }
      codes += bytes;
      inputs += N * kBlock;
      scales += N;
      starts += N;
    }
    Vec scale[2], minimum[2];
    scaler.read(g, scale, minimum);
    UNROLL for (int r = 0; r < N; ++r) {
      UNROLL for (int h = 0; h < 2; ++h) {
        acc[r][h] = fma(scale[h], part[r][h], acc[r][h]);
        if constexpr (minima) acc[r][h] = fma(minimum[h], set(totals[g * N + r]), acc[r][h]);
      }
    }
  }
  UNROLL for (int r = 0; r < N; ++r) {
    sums[r][0] = acc[r][0];
    sums[r][1] = acc[r][1];
  }
  add_apart<bits, scaling, minima, N>(weights, scaler, weights.codes + tile * blocks * bytes,
                                      from.apart + local * blocks, from.aparts[local], sums);
}

// Multiplies q6, whose blocks have a scale for each half.
template <int N>
SEPARATE void multiply_halves(const Weights& weights, int64_t tile, const Prepared& from,
                              int64_t local, Sums<N>& sums) {
  constexpr size_t bytes = block_bytes(Kind::q6);
  const int64_t blocks = weights.blocks;
  const uint8_t* codes = weights.codes + tile * blocks * bytes;
  const int8_t* inputs = reinterpret_cast<const int8_t*>(from.inputs) + local * blocks * kBlock;
  const Scale* scales = from.scales + local * blocks;
  const int32_t* starts = from.starts + local * blocks * 2;
  const Scaler<Scales::halves, false> scaler(weights, tile, blocks * 2);

  Vec acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = zero();
  const auto add_half = [&](int64_t half, Vec (&dot)[N][2]) {
    Vec scale[2], minimum[2];
    scaler.read(half, scale, minimum);
    UNROLL for (int r = 0; r < N; ++r) {
      UNROLL for (int h = 0; h < 2; ++h) {
        acc[r][h] = fma(scale[h], scaled(dot[r][h], scales[r]), acc[r][h]);
      }
    }
  };
  for (int64_t block = 0; block < blocks; ++block) {
    Vec dot[N][2];
    UNROLL for (size_t line = 0; line < bytes; line += 64) {
      __builtin_prefetch(codes + kAhead + line);
    }
    half_dots<6, 0, N>(codes, inputs, starts, dot);
    add_half(block * 2, dot);
    half_dots<6, 1, N>(codes, inputs, starts + N, dot);
    add_half(block * 2 + 1, dot);
    codes += bytes;
    inputs += N * kBlock;
    scales += N;
    starts += 2 * N;
  }
  UNROLL for (int r = 0; r < N; ++r) {
    sums[r][0] = acc[r][0];
    sums[r][1] = acc[r][1];
  }
  add_apart<6, Scales::halves, false, N>(weights, scaler, weights.codes + tile * blocks * bytes,
                                         from.apart + local * blocks, from.aparts[local], sums);
}

template <Kind kind, int N>
SEPARATE void multiply_dense(const Weights& weights, int64_t tile, const Prepared& from,
                             int64_t local, Sums<N>& sums) {
  constexpr size_t bytes = block_bytes(kind);
  const uint8_t* numbers = weights.codes + tile * weights.blocks * bytes;
  const uint8_t* inputs = from.inputs + local * weights.blocks * kBlock * input_bytes(kind);
  Vec acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = zero();
  for (int64_t block = 0; block < weights.blocks; ++block) {
    if constexpr (kind == Kind::bf16) {
      const auto* x = reinterpret_cast<const uint16_t*>(inputs);
      for (int pair = 0; pair < kBlock / 2; ++pair) {
        const auto* w = reinterpret_cast<const uint16_t*>(numbers) + pair * 2 * kTile;
        __builtin_prefetch(reinterpret_cast<const uint8_t*>(w) + kAhead);
        __builtin_prefetch(reinterpret_cast<const uint8_t*>(w) + kAhead + 64);
        const Pairs w0 = load_pairs(w), w1 = load_pairs(w + kTile);
        UNROLL for (int r = 0; r < N; ++r) {
          const Pairs b = set_pair(x + r * kBlock + 2 * pair);
          acc[r][0] = dot_pairs(w0, b, acc[r][0]);
          acc[r][1] = dot_pairs(w1, b, acc[r][1]);
        }
      }
    } else {
      const auto* x = reinterpret_cast<const float*>(inputs);
      for (int k = 0; k < kBlock; ++k) {
        const uint8_t* w = numbers + k * bytes / kBlock;
        __builtin_prefetch(w + kAhead);
        Vec w0, w1;
        if constexpr (kind == Kind::f16) {
          w0 = load_half(reinterpret_cast<const uint16_t*>(w));
          w1 = load_half(reinterpret_cast<const uint16_t*>(w) + kHalf);
        } else {
          __builtin_prefetch(w + kAhead + 64);
          w0 = load(reinterpret_cast<const float*>(w));
          w1 = load(reinterpret_cast<const float*>(w) + kHalf);
        }
        UNROLL for (int r = 0; r < N; ++r) {
          const Vec b = set(x[r * kBlock + k]);
          acc[r][0] = fma(w0, b, acc[r][0]);
          acc[r][1] = fma(w1, b, acc[r][1]);
        }
      }
    }
    numbers += bytes;
    inputs += N * kBlock * input_bytes(kind);
  }
  UNROLL for (int r = 0; r < N; ++r) {
    sums[r][0] = acc[r][0];
    sums[r][1] = acc[r][1];
  }
}
