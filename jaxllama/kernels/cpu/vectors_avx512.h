// Vectors of sixteen floats with AVX-512, for all kernels.
//
// Included by choose_avx512.cc, and by the vectors of matmul and of attention, inside the unnamed
// namespace of each file: see isa.h.

constexpr int WIDTH = 16;

using Vec = __m512;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The larger number; if one is NaN, the second argument.
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
// A NaN in x stays NaN.
inline Vec at_least(Vec x, float low) { return _mm512_max_ps(set(low), x); }
inline Vec round_even(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline Vec times_power(Vec x, Vec power) { return _mm512_scalef_ps(x, power); }
inline float highest(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
