// Attention for any processor: vectors of four, in the compiler's vector extension.
#include <cstring>

#include "attend.h"
#include "attend_numbers.h"

namespace jaxllama {
namespace portable {
namespace {

constexpr int WIDTH = 4;
constexpr int TILE_VECTORS = 2;  // with six rows: twelve sums, in sixteen registers

typedef float Vec __attribute__((vector_size(16)));
typedef std::int32_t Mask __attribute__((vector_size(16)));

inline Vec load(const float* from) {
  Vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }
inline Vec set(float x) { return Vec{x, x, x, x}; }
inline float first(Vec x) { return x[0]; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec divide(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec select(Mask chosen, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((chosen & reinterpret_cast<Mask>(yes)) |
                               (~chosen & reinterpret_cast<Mask>(no)));
}
// The larger number; if one is NaN, the second argument.
inline Vec larger(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec at_least(Vec x, float low) { return select(x < set(low), set(low), x); }
// Rounds to the nearest integer; correct for magnitudes below 2^22.
inline Vec round_even(Vec x) { return (x + set(12582912.0f)) - set(12582912.0f); }
inline Vec times_power(Vec x, Vec power) {
  const Mask low = power < set(-126.0f);
  Mask bits;  // 2^power, built in the exponent
  for (int i = 0; i < WIDTH; ++i) {
    const float sound = power[i] >= -126.0f && power[i] <= 127.0f ? power[i] : 0.0f;
    bits[i] = (static_cast<std::int32_t>(sound) + 127) * (1 << 23);
  }
  return select(low, set(0.0f), x * reinterpret_cast<Vec>(bits));
}
// Keeps lanes from..to-1 of x and sets the others to `fill`.
inline Vec keep(Vec x, std::int64_t from, std::int64_t to, float fill) {
  for (int i = 0; i < WIDTH; ++i) {
    if (i < from || i >= to) x[i] = fill;
  }
  return x;
}
inline float highest(Vec x) {
  const float one = x[0] > x[2] ? x[0] : x[2], two = x[1] > x[3] ? x[1] : x[3];
  return one > two ? one : two;
}
inline float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline void transpose(Vec (&rows)[WIDTH]) {
  const Vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
  for (int i = 0; i < WIDTH; ++i) rows[i] = Vec{a[i], b[i], c[i], d[i]};
}

inline Vec widen(const Bf16* from) {
  typedef std::uint16_t Narrow __attribute__((vector_size(8)));
  typedef std::uint32_t Bits __attribute__((vector_size(16)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  return reinterpret_cast<Vec>(__builtin_convertvector(narrow, Bits) << 16);
}
inline Vec widen(const Half* from) {
  return Vec{widen_half(from[0].bits), widen_half(from[1].bits), widen_half(from[2].bits),
             widen_half(from[3].bits)};
}
inline Vec widen(const float* from) { return load(from); }
inline Vec widen(const std::int8_t* from) {
  typedef std::int8_t Narrow __attribute__((vector_size(4)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  return __builtin_convertvector(__builtin_convertvector(narrow, Mask), Vec);
}

#include "attend_body.h"

template <class T>
struct DotOf {
  using Dot = Wide;
};

}  // namespace

const AttendBody attend_body{step, append_row, append, prompt, 64};

}  // namespace portable
}  // namespace jaxllama
