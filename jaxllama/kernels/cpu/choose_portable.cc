// Choosing for any processor: vectors of four, in the compiler's vector extension.
#include <cstring>

#include "choose.h"

namespace jaxllama {
namespace portable {
namespace {

constexpr int WIDTH = 4;

typedef float Vec __attribute__((vector_size(16)));
typedef std::int32_t Flags __attribute__((vector_size(16)));  // per lane: all bits set, or none

inline Vec load(const float* from) {
  Vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }
inline Vec set(float x) { return Vec{x, x, x, x}; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec select(Flags chosen, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((chosen & reinterpret_cast<Flags>(yes)) |
                               (~chosen & reinterpret_cast<Flags>(no)));
}
// The larger number; if one is NaN, the second argument.
inline Vec larger(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec at_least(Vec x, float low) { return select(x < set(low), set(low), x); }
// Rounds to the nearest integer; correct for magnitudes below 2^22.
inline Vec round_even(Vec x) { return (x + set(12582912.0f)) - set(12582912.0f); }
inline Vec times_power(Vec x, Vec power) {
  Flags bits;  // 2^power, built in the exponent
  for (int i = 0; i < WIDTH; ++i) {
    const float sound = power[i] >= -126.0f && power[i] <= 127.0f ? power[i] : 0.0f;
    bits[i] = (static_cast<std::int32_t>(sound) + 127) * (1 << 23);
  }
  return select(power < set(-126.0f), set(0.0f), x * reinterpret_cast<Vec>(bits));
}
inline float highest(Vec x) {
  const float one = x[0] > x[2] ? x[0] : x[2], two = x[1] > x[3] ? x[1] : x[3];
  return one > two ? one : two;
}
inline float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }

inline Flags no_flags() { return Flags{0, 0, 0, 0}; }
inline Flags note_unsound(Flags so_far, Vec x) { return so_far | ~(x < set(__builtin_inff())); }
inline unsigned bits(Flags flags) {
  unsigned found = 0;
  for (int i = 0; i < WIDTH; ++i) found |= (flags[i] & 1u) << i;
  return found;
}
inline bool is_any(Flags flags) { return bits(flags) != 0; }
inline unsigned bits_at_least(Vec x, Vec least) { return bits(x >= least); }
inline unsigned bits_above(Vec x, Vec least) { return bits(x > least); }
inline void put_places(std::int32_t* to, std::int64_t first, unsigned bits) {
  for (; bits != 0; bits &= bits - 1) {
    *to++ = static_cast<std::int32_t>(first) + __builtin_ctz(bits);
  }
}

#include "choose_body.h"

}  // namespace

const ChooseBody choose_body{survey, find, weigh, add_weights, reaching, collect};

}  // namespace portable
}  // namespace jaxllama
