// Matmul in plain C++, for any processor.
#include "adapt.h"
#include "matmul.h"

#include "half.h"

namespace jaxllama::portable {
namespace {

#include "vectors_portable.h"

struct Pairs {
  Vec even, odd;
};

constexpr int kMostRows = 1;
constexpr int kZeroOfEight = 128;
constexpr float kLift = 0.0f;
constexpr int32_t kLiftBits = 0;

inline Vec scaled(const Vec& sum, Scale scale) { return mul(sum, set(scale.by)); }

// Extracts some bits of each of sixteen words and subtracts `zero`.
inline Vec some_bits(const uint8_t* from, int shift, int zero, int mask) {
  Vec y;
  LANES y.v[i] = static_cast<float>(((from[4 * i + shift / 8] >> shift % 8) & mask) - zero);
  return y;
}

// Compares magnitudes as integers, so that a NaN is larger than every number.
inline float largest_magnitude(const Vec& x, const Vec& y) {
  uint32_t largest = 0;
  LANES {
    const uint32_t a = bits_of(x.v[i]) & 0x7fffffff, b = bits_of(y.v[i]) & 0x7fffffff;
    largest = a > largest ? a : largest;
    largest = b > largest ? b : largest;
  }
  return float_of(largest);
}

// Multiplies thirty-two numbers by `factor`, rounds them to bytes and returns the sum of the bytes.
inline int32_t round_block(const Vec (&block)[2], float factor, int8_t* to) {
  const Vec &x = block[0], &y = block[1];
  int32_t total = 0;
  LANES {
    to[i] = static_cast<int8_t>((x.v[i] * factor + kPush) - kPush);
    to[i + kHalf] = static_cast<int8_t>((y.v[i] * factor + kPush) - kPush);
    total += to[i] + to[i + kHalf];
  }
  return total;
}

inline void quantise(const Vec (&blocks)[kAtOnce][2], int8_t* bytes, float* scales, int32_t* sums) {
  for (int b = 0; b < kAtOnce; ++b) {
    const float largest = largest_magnitude(blocks[b][0], blocks[b][1]);
    scales[b] = largest <= kLargest ? largest / kLargestCode : __builtin_nanf("");
    const bool sound = largest >= kSmallest && largest <= kLargest;
    if (sound) {
      sums[b] = round_block(blocks[b], kLargestCode / largest, bytes + b * kBlock);
      continue;
    }
    sums[b] = 0;
    for (int k = 0; k < kBlock; ++k) bytes[b * kBlock + k] = 0;
  }
}

inline void store_narrow(uint16_t* to, const Vec& x, const Vec& y) {
  LANES {
    to[i] = narrow(x.v[i]);
    to[i + kHalf] = narrow(y.v[i]);
  }
}

inline Pairs load_pairs(const uint16_t* from) {
  Pairs y;
  LANES {
    y.even.v[i] = widen_bfloat(from[2 * i]);
    y.odd.v[i] = widen_bfloat(from[2 * i + 1]);
  }
  return y;
}

inline Pairs set_pair(const uint16_t* from) { return {set(widen_bfloat(from[0])), set(widen_bfloat(from[1]))}; }

inline Vec dot_pairs(const Pairs& w, const Pairs& x, const Vec& sum) {
  return fma(w.even, x.even, fma(w.odd, x.odd, sum));
}

inline int32_t dot_four(const uint8_t* w, const int8_t* x) {
  return w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
}

inline int32_t dot_nibbles(const uint8_t* w, const int8_t* x) {
  int32_t total = 0;
  for (int b = 0; b < 4; ++b) total += (w[b] & 15) * x[b] + (w[b] >> 4) * x[b + 16];
  return total;
}

// Adds one half of a block whose codes have five or six bits, for the outputs of half h.
template <int bits, int half>
INLINE void add_half(const uint8_t* codes, const int8_t* x, int h, int32_t (&acc)[kHalf]) {
  const uint8_t* top = codes + kNibbles + (bits == 5 ? 0 : half * 128) + h * 64;
  for (int j = 0; j < 4; ++j) {
    const uint8_t* nibbles = codes + (2 * j + h) * 64;
    const int place = bits == 5 ? half * 4 + j : 2 * j;
    LANES for (int b = 0; b < 4; ++b) {
      const int high = top[4 * i + b] >> place & (bits == 5 ? 1 : 3);
      acc[i] += ((nibbles[4 * i + b] >> 4 * half & 15) | high << 4) * x[half * 16 + 4 * j + b];
    }
  }
}

template <int bits, int half, int N>
INLINE void half_dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts,
                      Vec (&out)[N][2]) {
  for (int r = 0; r < N; ++r) {
    for (int h = 0; h < 2; ++h) {
      int32_t acc[kHalf];
      LANES acc[i] = starts[r];
      add_half<bits, half>(codes, inputs + r * kBlock, h, acc);
      LANES out[r][h].v[i] = static_cast<float>(acc[i]);
    }
  }
}

template <int bits, int N>
INLINE void dots(const uint8_t* codes, const int8_t* inputs, const int32_t* starts, Vec (&out)[N][2]) {
  for (int r = 0; r < N; ++r) {
    const int8_t* x = inputs + r * kBlock;
    for (int h = 0; h < 2; ++h) {
      int32_t acc[kHalf];
      LANES acc[i] = starts[r];
      if constexpr (bits == 5) {
        add_half<5, 0>(codes, x, h, acc);
        add_half<5, 1>(codes, x, h, acc);
      }
      for (int j = 0; j < (bits == 4 ? 4 : bits == 5 ? 0 : 8); ++j) {
        const uint8_t* w = codes + (2 * j + h) * 64;
        LANES acc[i] += bits == 4 ? dot_nibbles(w + 4 * i, x + 4 * j)
                                  : dot_four(w + 4 * i, x + 4 * j);
      }
      LANES out[r][h].v[i] = static_cast<float>(acc[i]);
    }
  }
}

#include "matmul_body.h"
// Uses its functions.
#include "adapt_body.h"

}  // namespace

const MatmulOps matmul_ops = {kMostRows, prepare, multiply, nullptr, nullptr, nullptr};
const AdaptOps adapt_ops = {adapt};

}  // namespace jaxllama::portable
