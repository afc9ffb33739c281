// Vectors of sixteen floats in plain C++, for the matmul kernels.
//
// Included by matmul_portable.cc and matmul_emulated.cc inside their own unnamed namespaces: see
// isa.h.

#define UNROLL  // not needed: there are no vector registers to fill
#define INLINE inline
#define LANES for (int i = 0; i < kHalf; ++i)

struct Vec {
  float v[kHalf];
};

inline Vec set(float x) {
  Vec y;
  LANES y.v[i] = x;
  return y;
}
inline Vec zero() { return set(0.0f); }
inline Vec load(const float* from) {
  Vec y;
  LANES y.v[i] = from[i];
  return y;
}
inline void store(float* to, const Vec& x) { LANES to[i] = x.v[i]; }
inline Vec add(Vec x, const Vec& y) {
  LANES x.v[i] += y.v[i];
  return x;
}
inline Vec sub(Vec x, const Vec& y) {
  LANES x.v[i] -= y.v[i];
  return x;
}
inline Vec mul(Vec x, const Vec& y) {
  LANES x.v[i] *= y.v[i];
  return x;
}
inline Vec divide(Vec x, const Vec& y) {
  LANES x.v[i] /= y.v[i];
  return x;
}
inline Vec fma(Vec x, const Vec& y, const Vec& z) {
  LANES x.v[i] = x.v[i] * y.v[i] + z.v[i];
  return x;
}
inline float sum(const Vec& x) {
  float total = 0.0f;
  LANES total += x.v[i];
  return total;
}
// A NaN in x stays NaN.
inline Vec at_least(Vec x, float low) {
  LANES x.v[i] = x.v[i] < low ? low : x.v[i];
  return x;
}

// Adding this number removes the fraction of a float; correct for magnitudes below 2^22.
constexpr float kPush = 12582912.0f;

inline Vec round_even(Vec x) {
  LANES x.v[i] = (x.v[i] + kPush) - kPush;
  return x;
}

inline Vec times_power(Vec x, const Vec& power) {
  LANES {
    // If the power is NaN, x is NaN too and stays NaN.
    const int exponent = power.v[i] == power.v[i] ? static_cast<int>(power.v[i]) : 0;
    x.v[i] *= float_of(static_cast<uint32_t>(exponent + 127) << 23);
  }
  return x;
}

inline Vec load_half(const uint16_t* from) {
  Vec y;
  LANES y.v[i] = widen_half(from[i]);
  return y;
}

inline Vec load_bytes(const uint8_t* from) {
  Vec y;
  LANES y.v[i] = static_cast<float>(from[i]);
  return y;
}

inline Vec load_signed(const uint8_t* from) {
  Vec y;
  LANES y.v[i] = static_cast<float>(static_cast<int8_t>(from[i]));
  return y;
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t narrow(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return static_cast<uint16_t>((bits | 0x400000) >> 16);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
