// Attention with AVX-512 and its dot products of bfloat16: vectors of sixteen.
//
// A bfloat16 or int8 cache is multiplied as pairs of bfloat16, which represent its numbers exactly;
// queries and softmax weights are rounded to bfloat16. Sums are float32.
#include <immintrin.h>

#include <cstring>

#include "attend.h"
#include "attend_numbers.h"

namespace jaxllama {
namespace avx512 {
namespace {

#include "attend_vectors_avx512.h"

#include "attend_body.h"

#include "attend_pairs.h"

template <class T>
struct DotOf {
  using Dot = Pairs;
};
template <>
struct DotOf<Half> {
  using Dot = Wide;
};
template <>
struct DotOf<float> {
  using Dot = Wide;
};

}  // namespace

const AttendBody attend_body{step, append_row, append, prompt, 64};

}  // namespace avx512
}  // namespace jaxllama
