// Vectors of sixteen floats in plain C++, for the matmul kernels.
//
// Included by matmul_portable.cc and matmul_emulated.cc inside their own unnamed namespaces: see
// isa.h.

#define UNROLL  // not needed: there are no vector registers to fill
#define INLINE inline
#define LANES for (int i = 0; i < kHalf; ++i)

struct F {
  float v[kHalf];
};

inline F set(float x) {
  F y;
  LANES y.v[i] = x;
  return y;
}
inline F zero() { return set(0.0f); }
inline F load(const float* from) {
  F y;
  LANES y.v[i] = from[i];
  return y;
}
inline void store(float* to, const F& x) { LANES to[i] = x.v[i]; }
inline F add(F x, const F& y) {
  LANES x.v[i] += y.v[i];
  return x;
}
inline F sub(F x, const F& y) {
  LANES x.v[i] -= y.v[i];
  return x;
}
inline F mul(F x, const F& y) {
  LANES x.v[i] *= y.v[i];
  return x;
}
inline F divide(F x, const F& y) {
  LANES x.v[i] /= y.v[i];
  return x;
}
inline F fma(F x, const F& y, const F& z) {
  LANES x.v[i] = x.v[i] * y.v[i] + z.v[i];
  return x;
}
inline float sum(const F& x) {
  float total = 0.0f;
  LANES total += x.v[i];
  return total;
}
// A NaN in x stays NaN.
inline F at_least(float low, F x) {
  LANES x.v[i] = x.v[i] < low ? low : x.v[i];
  return x;
}

// Adding this number removes the fraction of a float; correct for magnitudes below 2^22.
constexpr float kPush = 12582912.0f;

inline F round_even(F x) {
  LANES x.v[i] = (x.v[i] + kPush) - kPush;
  return x;
}

inline F times_power(F x, const F& power) {
  LANES {
    // If the power is NaN, x is NaN too and stays NaN.
    const int exponent = power.v[i] == power.v[i] ? static_cast<int>(power.v[i]) : 0;
    x.v[i] *= float_of(static_cast<uint32_t>(exponent + 127) << 23);
  }
  return x;
}

inline F load_half(const uint16_t* from) {
  F y;
  LANES y.v[i] = widen_half(from[i]);
  return y;
}

inline F load_bytes(const uint8_t* from) {
  F y;
  LANES y.v[i] = static_cast<float>(from[i]);
  return y;
}

inline F load_signed(const uint8_t* from) {
  F y;
  LANES y.v[i] = static_cast<float>(static_cast<int8_t>(from[i]));
  return y;
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t narrow(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return static_cast<uint16_t>((bits | 0x400000) >> 16);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
