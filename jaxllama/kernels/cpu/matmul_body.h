// The matmul kernels, written once over the sixteen-lane vectors of an instruction set.
//
// Included by matmul_<isa>.cc inside its namespace, after the vector type `F` and its operations are
// defined; nothing here is visible elsewhere. `dots<bits, N>` multiplies one block of codes with N
// rows, exactly, in integers that start at kLiftBits; `half_dots<bits, half, N>` multiplies sixteen
// inputs of a block; `scaled` converts the sums to numbers. kMostRows depends on the registers. All
// other code is here.

// Each kind of weights has a function of its own: inlined into one, they take twice as long to
// compile, and are up to a tenth slower with eight rows.
#define SEPARATE __attribute__((noinline))

// ---- rows

// Loads sixteen numbers of a row; numbers past its end are zero.
inline F load_part(const float* from, int64_t left) {
  if (left >= kHalf) return load(from);
  float part[kHalf] = {};
  for (int64_t each = 0; each < left; ++each) part[each] = from[each];
  return load(part);
}

inline float inverse_root(const Rows& rows, const float* x) {
  F squares[4] = {zero(), zero(), zero(), zero()};
  int64_t start = 0;
  for (; start + 4 * kHalf <= rows.width; start += 4 * kHalf) {
    UNROLL for (int each = 0; each < 4; ++each) {
      const F part = load(x + start + each * kHalf);
      squares[each] = fma(part, part, squares[each]);
    }
  }
  for (; start < rows.width; start += kHalf) {
    const F part = load_part(x + start, rows.width - start);
    squares[0] = fma(part, part, squares[0]);
  }
  const float total = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  return 1.0f / __builtin_sqrtf(total / static_cast<float>(rows.width) + rows.eps);
}

// Reads sixteen inputs of a row: normed, in the order of W, zero past the end.
inline F read_inputs(const Rows& rows, const float* x, float root, int64_t k) {
  const int64_t left = rows.width - k;
  if (left <= 0) return zero();
  if (rows.order == nullptr) {
    const F part = load_part(x + k, left);
    if (rows.norm == nullptr) return part;
    return mul(mul(part, set(root)), load_part(rows.norm + k, left));
  }
  float part[kHalf] = {};
  for (int64_t each = 0; each < kHalf && each < left; ++each) {
    const int32_t from = rows.order[k + each];
    part[each] = rows.norm == nullptr ? x[from] : x[from] * root * rows.norm[from];
  }
  return load(part);
}

// Reads some blocks of a row. The usual case, complete blocks in order, has no branches.
template <int count>
inline void read_blocks(const Rows& rows, const float* x, float root, int64_t start,
                        F (&blocks)[count][2]) {
  if (rows.order != nullptr || start + count * kBlock > rows.width) {
    for (int h = 0; h < 2 * count; ++h) {
      blocks[h / 2][h % 2] = read_inputs(rows, x, root, start + h * kHalf);
    }
    return;
  }
  UNROLL for (int h = 0; h < 2 * count; ++h) blocks[h / 2][h % 2] = load(x + start + h * kHalf);
  if (rows.norm == nullptr) return;
  UNROLL for (int h = 0; h < 2 * count; ++h) {
    const F weight = load(rows.norm + start + h * kHalf);
    blocks[h / 2][h % 2] = mul(mul(blocks[h / 2][h % 2], set(root)), weight);
  }
}

// Returns the root mean square of the inputs of a row.
inline float usual_size(const Rows& rows, const float* x, float root) {
  F squares[2] = {zero(), zero()};
  for (int64_t start = 0; start < rows.width; start += kBlock) {
    UNROLL for (int h = 0; h < 2; ++h) {
      const int64_t at = start + h * kHalf, left = rows.width - at;
      F part = load_part(x + at, left);
      if (rows.norm != nullptr) part = mul(part, load_part(rows.norm + at, left));
      squares[h] = fma(part, part, squares[h]);
    }
  }
  const float total = sum(add(squares[0], squares[1]));
  return root * __builtin_sqrtf(total / static_cast<float>(rows.width));
}

// Sets the largest input of a block to zero; returns its place and value.
inline Apart take_apart(F (&block)[2]) {
  float inputs[kBlock];
  for (int h = 0; h < 2; ++h) store(inputs + h * kHalf, block[h]);
  int place = 0;
  for (int k = 1; k < kBlock; ++k) {
    if (__builtin_fabsf(inputs[k]) > __builtin_fabsf(inputs[place])) place = k;
  }
  const Apart found{0, 0, place, inputs[place]};
  inputs[place] = 0.0f;
  for (int h = 0; h < 2; ++h) block[h] = load(inputs + h * kHalf);
  return found;
}

inline int32_t sum_of_sixteen(const int8_t* bytes) {
  int32_t total = 0;
  for (int k = 0; k < kBlock / 2; ++k) total += bytes[k];
  return total;
}

// Quantises four blocks at a time, which fills the vectors, to int8 with one scale per block.
// Outliers are taken out first. A block with NaN or infinity becomes zeros with a scale that is not
// finite.
inline void prepare_packed(const Weights& weights, const Rows& rows, const Prepared& to, Band band,
                           int64_t local) {
  const int64_t blocks = weights.blocks;
  const int64_t groups = (blocks + weights.group - 1) / weights.group;
  const int32_t zero_code = weights.kind == Kind::q8 ? kZeroOfEight : weights.zero;
  const bool in_halves = weights.kind == Kind::q6;
  int8_t* inputs = reinterpret_cast<int8_t*>(to.inputs) + local * blocks * kBlock;
  Scale* scales = to.scales + local * blocks;
  int32_t* starts = to.starts + local * blocks * sums_of(weights.kind);
  float* sums = to.sums + local * groups;
  Apart* apart = to.apart + local * blocks;
  for (int row = 0; row < band.count; ++row) {
    const float* x = rows.x + (band.first + row) * rows.width;
    const float root = rows.norm == nullptr ? 1.0f : inverse_root(rows, x);
    const float most = kTowers / kLargestCode * usual_size(rows, x, root);  // of a scale
    float total = 0.0f;
    for (int64_t start = 0; start < blocks; start += kAtOnce) {
      F part[kAtOnce][2];
      read_blocks<kAtOnce>(rows, x, root, start * kBlock, part);
      float scale[kAtOnce];
      int32_t codes[kAtOnce];
      alignas(64) int8_t bytes[kAtOnce * kBlock];
      float taken[kAtOnce] = {};
      quantise(part, bytes, scale, codes);
      if (scale[0] > most || scale[1] > most || scale[2] > most || scale[3] > most) {
        for (int b = 0; b < kAtOnce; ++b) {
          if (!(scale[b] > most)) continue;
          *apart = take_apart(part[b]);
          apart->row = row;
          apart->block = static_cast<int32_t>(start + b);
          taken[b] = apart++->x;
        }
        quantise(part, bytes, scale, codes);
      }
      for (int b = 0; b < kAtOnce && start + b < blocks; ++b) {
        const int64_t block = start + b, at = block * band.count + row;
        __builtin_memcpy(inputs + at * kBlock, bytes + b * kBlock, kBlock);
        scales[at] = {scale[b], scale[b] * -kLift};
        if (in_halves) {
          const int32_t first = sum_of_sixteen(bytes + b * kBlock);
          starts[at + block * band.count] = kLiftBits - first * zero_code;
          starts[at + (block + 1) * band.count] = kLiftBits - (codes[b] - first) * zero_code;
        } else {
          starts[at] = kLiftBits - codes[b] * zero_code;
        }
        const float share = scale[b] * static_cast<float>(codes[b]) + taken[b];
        total = weights.group == 1 || block % weights.group == 0 ? share : total + share;
        sums[(weights.group == 1 ? block : block / weights.group) * band.count + row] = total;
      }
    }
  }
  to.aparts[local] = static_cast<int32_t>(apart - (to.apart + local * blocks));
}

inline void prepare_dense(const Weights& weights, const Rows& rows, const Prepared& to, Band band,
                          int64_t local) {
  const bool narrow = weights.kind == Kind::bf16;
  uint8_t* inputs = to.inputs + local * weights.blocks * kBlock * input_bytes(weights.kind);
  for (int row = 0; row < band.count; ++row) {
    const float* x = rows.x + (band.first + row) * rows.width;
    const float root = rows.norm == nullptr ? 1.0f : inverse_root(rows, x);
    for (int64_t block = 0; block < weights.blocks; ++block) {
      const int64_t at = (block * band.count + row) * kBlock;
      F block_of[1][2];
      read_blocks<1>(rows, x, root, block * kBlock, block_of);
      const F(&part)[2] = block_of[0];
      if (narrow) {
        store_narrow(reinterpret_cast<uint16_t*>(inputs) + at, part[0], part[1]);
      } else {
        store(reinterpret_cast<float*>(inputs) + at, part[0]);
        store(reinterpret_cast<float*>(inputs) + at + kHalf, part[1]);
      }
    }
  }
}

void prepare(const Weights& weights, const Rows& rows, const Prepared& to, Band band,
             int64_t local) {
  if (is_packed(weights.kind)) {
    prepare_packed(weights, rows, to, band, local);
  } else {
    prepare_dense(weights, rows, to, band, local);
  }
}

// ---- tiles

template <int N>
using Sums = F[N][2];

// Reads scales and minima of a tile from any kind of storage.
template <Scales scaling, bool minima>
struct Scaler {
  const Weights& weights;
  int64_t first;  // first group of this tile; half blocks are separate groups

  Scaler(const Weights& weights, int64_t tile, int64_t groups)
      : weights(weights), first(tile * groups) {}

  void read(int64_t group, F (&scale)[2], F (&minimum)[2]) const {
    constexpr int kinds = minima ? 2 : 1;
    for (int h = 0; h < 2; ++h) {
      const int64_t at = (first + group) * kinds * kTile + h * kHalf;
      if constexpr (scaling == Scales::half) {
        const auto* from = static_cast<const uint16_t*>(weights.scales) + at;
        scale[h] = load_half(from);
        if constexpr (minima) minimum[h] = load_half(from + kTile);
      } else if constexpr (scaling == Scales::halves) {
        const int64_t unit = (first + group) / (2 * kBlocksPerUnit) * kTile + h * kHalf;
        const auto* units = static_cast<const uint16_t*>(weights.scales) + unit;
        scale[h] = mul(load_signed(weights.steps + at), load_half(units));
      } else if constexpr (scaling == Scales::full) {
        const auto* from = static_cast<const float*>(weights.scales) + at;
        scale[h] = load(from);
        if constexpr (minima) minimum[h] = load(from + kTile);
      } else {
        const int64_t unit = (first + group) / kBlocksPerUnit * kinds * kTile + h * kHalf;
        const auto* units = static_cast<const uint16_t*>(weights.scales) + unit;
        scale[h] = mul(load_bytes(weights.steps + at), load_half(units));
        if constexpr (minima) {
          minimum[h] = mul(load_bytes(weights.steps + at + kTile), load_half(units + kTile));
        }
      }
    }
  }
};

// Bytes to prefetch ahead: weights are read once and in order.
constexpr int kAhead = 4096;

// Adds the products of the outliers to the sums of a tile.
template <int bits, Scales scaling, bool minima, int N>
SEPARATE void add_apart(const Weights& weights, const Scaler<scaling, minima>& scaler,
                        const uint8_t* codes, const Apart* apart, int32_t count, Sums<N>& sums) {
  for (; count > 0; --count, ++apart) {
    const int half = bits != 8 && apart->place >= kBlock / 2 ? 1 : 0;
    const int place = apart->place - half * kBlock / 2;
    const uint8_t* from = codes + apart->block * block_bytes(kind_of(bits));
    F scale[2], minimum[2];
    scaler.read(bits == 6 ? apart->block * 2 + half : apart->block / weights.group, scale, minimum);
    for (int h = 0; h < 2; ++h) {
      F code = some_bits(from + place / 4 * 128 + h * 64, place % 4 * 8 + half * 4,
                         bits == 8 ? 128 : weights.zero, bits == 8 ? 255 : 15);
      if constexpr (bits == 5) {
        const int at = place % 4 * 8 + half * 4 + place / 4;
        code = fma(some_bits(from + kNibbles + h * 64, at, 0, 1), set(16.0f), code);
      }
      if constexpr (bits == 6) {
        const int at = place % 4 * 8 + place / 4 * 2;
        code = fma(some_bits(from + kNibbles + half * 128 + h * 64, at, 0, 3), set(16.0f), code);
      }
      F& sum = sums[apart->row][h];
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

  F acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = zero();
  for (int64_t g = 0; g < groups; ++g) {
    F part[N][2];
    UNROLL for (int r = 0; r < N; ++r) part[r][0] = part[r][1] = zero();
    int64_t left = single ? 1 : (g + 1) * group <= blocks ? group : blocks - g * group;
    for (; left > 0; --left) {
      F dot[N][2];
      UNROLL for (size_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(codes + kAhead + line);
      }
      dots<bits, N>(codes, inputs, starts, dot);
      UNROLL for (int r = 0; r < N; ++r) {
        UNROLL for (int h = 0; h < 2; ++h) {
          const F found = scaled(dot[r][h], scales[r]);
          part[r][h] = single ? found : add(part[r][h], found);
        }
      }
      codes += bytes;
      inputs += N * kBlock;
      scales += N;
      starts += N;
    }
    F scale[2], minimum[2];
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

  F acc[N][2];
  UNROLL for (int r = 0; r < N; ++r) acc[r][0] = acc[r][1] = zero();
  const auto add_half = [&](int64_t half, F (&dot)[N][2]) {
    F scale[2], minimum[2];
    scaler.read(half, scale, minimum);
    UNROLL for (int r = 0; r < N; ++r) {
      UNROLL for (int h = 0; h < 2; ++h) {
        acc[r][h] = fma(scale[h], scaled(dot[r][h], scales[r]), acc[r][h]);
      }
    }
  };
  for (int64_t block = 0; block < blocks; ++block) {
    F dot[N][2];
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
  F acc[N][2];
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
        F w0, w1;
        if constexpr (kind == Kind::f16) {
          w0 = load_half(reinterpret_cast<const uint16_t*>(w));
          w1 = load_half(reinterpret_cast<const uint16_t*>(w) + kHalf);
        } else {
          __builtin_prefetch(w + kAhead + 64);
          w0 = load(reinterpret_cast<const float*>(w));
          w1 = load(reinterpret_cast<const float*>(w) + kHalf);
        }
        UNROLL for (int r = 0; r < N; ++r) {
          const F b = set(x[r * kBlock + k]);
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

// ---- finish

// Below this x, e^-x overflows float32, and the sigmoid of x is practically zero.
constexpr float kLowest = -87.0f;

// Computes e^-x for x of at least kLowest to a few units in the last place; never below e^-87.
inline F exponential_of_minus(F x) {
  x = at_least(kLowest, sub(zero(), x));
  const F whole = round_even(mul(x, set(1.44269504f)));
  F rest = fma(whole, set(-0.693359375f), x);
  rest = fma(whole, set(2.12194440e-4f), rest);
  F p = set(1.9875691500e-4f);
  p = fma(p, rest, set(1.3981999507e-3f));
  p = fma(p, rest, set(8.3334519073e-3f));
  p = fma(p, rest, set(4.1665795894e-2f));
  p = fma(p, rest, set(1.6666665459e-1f));
  p = fma(p, rest, set(5.0000001201e-1f));
  p = fma(p, mul(rest, rest), add(rest, set(1.0f)));
  return times_power(p, whole);
}

inline F swiglu(F gate, F value) {
  gate = at_least(kLowest, gate);
  return mul(divide(gate, add(set(1.0f), exponential_of_minus(gate))), value);
}

inline void store_part(float* to, F value, int64_t left) {
  if (left >= kHalf) {
    store(to, value);
    return;
  }
  float part[kHalf];
  store(part, value);
  for (int64_t each = 0; each < left; ++each) to[each] = part[each];
}

// Adds sixteen numbers of the residual of a row, if there is one.
inline F with_residual(const Finish& finish, int64_t row, int64_t at, int64_t left, F value) {
  if (finish.residual == nullptr) return value;
  return add(load_part(finish.residual + row * added_width(finish) + at, left), value);
}

// Writes sixteen finished outputs of a row, from output `at` on.
inline void put(const Finish& finish, int64_t row, int64_t at, F value) {
  const int64_t left = finish.outward - at;
  if (left <= 0) return;
  store_part(finish.y + row * finish.outward + at, with_residual(finish, row, at, left, value),
             left);
}

// Writes sixteen outputs of a gated feed-forward.
inline void put_gated(const Finish& finish, int64_t row, int64_t at, F gate, F value) {
  const int64_t left = finish.outward - at;
  if (left <= 0) return;
  gate = with_residual(finish, row, at, left, gate);
  value = with_residual(finish, row, finish.outward + at, left, value);
  store_part(finish.y + row * finish.outward + at, swiglu(gate, value), left);
}

template <int N>
void finish_tile(const Finish& finish, int64_t tile, Band band, Sums<N>& sums) {
  const int64_t at = tile * kTile;
  for (int r = 0; r < N; ++r) {
    const int64_t row = band.first + r;
    if (finish.bias != nullptr) {
      for (int h = 0; h < 2; ++h) sums[r][h] = add(sums[r][h], load(finish.bias + at + h * kHalf));
    }
    if (finish.swiglu) {
      put_gated(finish, row, tile * kHalf, sums[r][0], sums[r][1]);
    } else {
      put(finish, row, at, sums[r][0]);
      put(finish, row, at + kHalf, sums[r][1]);
    }
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

// ---- choosing among the templates

template <int N>
void multiply_band(const Weights& weights, int64_t tile, const Prepared& from, int64_t local,
                   Band band, const Finish& finish) {
  expect_outputs<N>(finish, tile, band);
  Sums<N> sums;
  UNROLL for (int r = 0; r < N; ++r) sums[r][0] = sums[r][1] = zero();
#define PACKED(bits, scaling, minima, single) \
  multiply_packed<bits, Scales::scaling, minima, single, N>(weights, tile, from, local, sums)
#define SCALED(bits, scaling)                                                           \
  (weights.has_minima                                                                   \
       ? (weights.group == 1 ? PACKED(bits, scaling, true, true)                        \
                             : PACKED(bits, scaling, true, false))                      \
       : (weights.group == 1 ? PACKED(bits, scaling, false, true)                       \
                             : PACKED(bits, scaling, false, false)))
  switch (weights.kind) {
    case Kind::q4:
      if (weights.scaling == Scales::half) SCALED(4, half);
      if (weights.scaling == Scales::full) SCALED(4, full);
      if (weights.scaling == Scales::steps) PACKED(4, steps, true, true);
      break;
    case Kind::q5:
      if (weights.scaling == Scales::half) SCALED(5, half);
      if (weights.scaling == Scales::full) SCALED(5, full);
      if (weights.scaling == Scales::steps) PACKED(5, steps, true, true);
      break;
    case Kind::q6:
      multiply_halves<N>(weights, tile, from, local, sums);
      break;
    case Kind::q8:
      if (weights.scaling == Scales::half) SCALED(8, half);
      if (weights.scaling == Scales::full) SCALED(8, full);
      break;
    case Kind::bf16:
      multiply_dense<Kind::bf16, N>(weights, tile, from, local, sums);
      break;
    case Kind::f16:
      multiply_dense<Kind::f16, N>(weights, tile, from, local, sums);
      break;
    case Kind::f32:
      multiply_dense<Kind::f32, N>(weights, tile, from, local, sums);
      break;
  }
#undef SCALED
#undef PACKED
  finish_tile<N>(finish, tile, band, sums);
}

void multiply(const Weights& weights, int64_t tile, const Prepared& from, int64_t local, Band band,
              const Finish& finish) {
  switch (band.count) {
#define ROWS(N)                                                                           \
  case N:                                                                                 \
    if constexpr (N <= kMostRows) multiply_band<N>(weights, tile, from, local, band, finish); \
    break;
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
  }
}
