// The rows of a matmul, as the products read them: normed, and quantised for packed weights.
//
// Included by matmul_body.h.

inline float inverse_root(const Rows& rows, const float* x) {
  Vec squares[4] = {zero(), zero(), zero(), zero()};
  int64_t start = 0;
  for (; start + 4 * kHalf <= rows.width; start += 4 * kHalf) {
    UNROLL for (int each = 0; each < 4; ++each) {
      const Vec part = load(x + start + each * kHalf);
      squares[each] = fma(part, part, squares[each]);
    }
  }
  for (; start < rows.width; start += kHalf) {
    const Vec part = load_part(x + start, rows.width - start);
    squares[0] = fma(part, part, squares[0]);
  }
  const float total = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  return 1.0f / __builtin_sqrtf(total / static_cast<float>(rows.width) + rows.eps);
}

// Reads sixteen inputs of a row: normed, in the order of W, zero past the end.
inline Vec read_inputs(const Rows& rows, const float* x, float root, int64_t k) {
  const int64_t left = rows.width - k;
  if (left <= 0) return zero();
  if (rows.order == nullptr) {
    const Vec part = load_part(x + k, left);
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
                        Vec (&blocks)[count][2]) {
  if (rows.order != nullptr || start + count * kBlock > rows.width) {
    for (int h = 0; h < 2 * count; ++h) {
      blocks[h / 2][h % 2] = read_inputs(rows, x, root, start + h * kHalf);
    }
    return;
  }
  UNROLL for (int h = 0; h < 2 * count; ++h) blocks[h / 2][h % 2] = load(x + start + h * kHalf);
  if (rows.norm == nullptr) return;
  UNROLL for (int h = 0; h < 2 * count; ++h) {
    const Vec weight = load(rows.norm + start + h * kHalf);
    blocks[h / 2][h % 2] = mul(mul(blocks[h / 2][h % 2], set(root)), weight);
  }
}

// Returns the root mean square of the inputs of a row.
inline float usual_size(const Rows& rows, const float* x, float root) {
  Vec squares[2] = {zero(), zero()};
  for (int64_t start = 0; start < rows.width; start += kBlock) {
    UNROLL for (int h = 0; h < 2; ++h) {
      const int64_t at = start + h * kHalf, left = rows.width - at;
      Vec part = load_part(x + at, left);
      if (rows.norm != nullptr) part = mul(part, load_part(rows.norm + at, left));
      squares[h] = fma(part, part, squares[h]);
    }
  }
  const float total = sum(add(squares[0], squares[1]));
  return root * __builtin_sqrtf(total / static_cast<float>(rows.width));
}

// Sets the largest input of a block to zero; returns its place and value.
inline Apart take_apart(Vec (&block)[2]) {
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
      Vec part[kAtOnce][2];
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
      Vec block_of[1][2];
      read_blocks<1>(rows, x, root, block * kBlock, block_of);
      const Vec(&part)[2] = block_of[0];
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
