// Runs attention over random shapes, holds it against sums in double precision and prompts against
// steps bit for bit.
//
// Built with sanitizers by test_build.py: every array is exactly as long as promised, so a kernel
// that reads or writes one element too many is caught. With an argument it plants such an error.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "attend.h"
#include "digest.h"
#include "half.h"
#include "pool.h"

extern "C" {
const char* jaxllama_isa();
int jaxllama_set_isa(const char* name);
}

using namespace jaxllama;

namespace {

std::mt19937 noise(7);

int64_t within(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(noise);
}
float normal() { return std::normal_distribution<float>()(noise); }

size_t bytes_of(CacheKind kind) {
  return kind == CacheKind::int8 ? 1 : kind == CacheKind::f32 ? 4 : 2;
}

// A cache and the arrays that hold it.
struct Cache {
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;

  explicit Cache(const AttendCache& like) {
    const auto columns = static_cast<size_t>(like.slots * like.heads * like.columns);
    const size_t numbers = columns * static_cast<size_t>(like.size);
    for (auto* side : {&keys, &values}) {
      side->resize(numbers * bytes_of(like.kind));
      for (size_t i = 0; i < numbers; ++i) put(like.kind, side->data(), i);
    }
    if (like.kind != CacheKind::int8) return;
    for (auto* side : {&key_scales, &value_scales}) {
      for (size_t i = 0; i < columns; ++i) side->push_back(0.02f + 0.001f * normal());
    }
  }

  static void put(CacheKind kind, uint8_t* side, size_t i) {
    if (kind == CacheKind::int8) {
      side[i] = static_cast<uint8_t>(within(-127, 127));
    } else if (kind == CacheKind::f32) {
      const float x = normal();
      std::memcpy(side + 4 * i, &x, 4);
    } else {  // about 1 in size, as bits
      const int64_t one = kind == CacheKind::bf16 ? 0x3f00 : 0x3800;
      const int64_t rest = within(0, 0xff), sign = within(0, 1) << 15;
      const auto x = static_cast<uint16_t>(one + rest + sign);
      std::memcpy(side + 2 * i, &x, 2);
    }
  }

  AttendCache described(AttendCache like) {
    like.keys = keys.data();
    like.values = values.data();
    const bool scaled = like.kind == CacheKind::int8;
    like.key_scales = scaled ? key_scales.data() : nullptr;
    like.value_scales = scaled ? value_scales.data() : nullptr;
    return like;
  }

  bool operator==(const Cache& other) const {
    return keys == other.keys && values == other.values && key_scales == other.key_scales &&
           value_scales == other.value_scales;
  }
};

double number(const AttendCache& cache, const void* side, const float* scales, int64_t column,
              int64_t place) {
  const auto* bytes = static_cast<const uint8_t*>(side);
  const int64_t i = column * cache.size + place;
  uint16_t bits;
  float x;
  switch (cache.kind) {
    case CacheKind::int8:
      return static_cast<double>(static_cast<int8_t>(bytes[i])) * scales[column];
    case CacheKind::f32:
      std::memcpy(&x, bytes + 4 * i, 4);
      return x;
    default:
      std::memcpy(&bits, bytes + 2 * i, 2);
      return cache.kind == CacheKind::bf16 ? widen_bfloat(bits) : widen_half(bits);
  }
}

// Input rows, their positions, and room for results.
struct Rows {
  std::vector<float> qkv, cos, sin, out;

  Rows(const AttendCache& cache, int64_t heads, int64_t rows) {
    for (int64_t i = 0; i < rows * (heads + 2 * cache.heads) * cache.size; ++i) {
      qkv.push_back(normal());
    }
    for (int64_t i = 0; i < rows * cache.size / 2; ++i) {
      const float angle = normal();
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    out.assign(static_cast<size_t>(rows * heads * cache.size), NAN);
  }

  AttendInput described(int64_t heads, int64_t window) {
    return {qkv.data(), cos.data(), sin.data(), heads, window, out.data()};
  }
};

// What one query head of one row should give, from the cache it has appended to.
std::vector<double> expected(const AttendInput& in, const AttendCache& cache, int64_t row,
                             int64_t head, int64_t slot, int64_t position) {
  const int64_t size = cache.size, half = size / 2;
  const float* from = in.qkv + (row * (in.heads + 2 * cache.heads) + head) * size;
  std::vector<double> q(static_cast<size_t>(size));
  for (int64_t i = 0; i < half; ++i) {
    const double cos = in.cos[row * half + i], sin = in.sin[row * half + i];
    q[i] = (from[i] * cos - from[half + i] * sin) / std::sqrt(size);
    q[half + i] = (from[half + i] * cos + from[i] * sin) / std::sqrt(size);
  }
  const int64_t first = (slot * cache.heads + head / (in.heads / cache.heads)) * cache.columns;
  std::vector<double> mixed(q.size()), scores;
  const int64_t low = in.window == 0 ? 0 : std::max<int64_t>(position - in.window + 1, 0);
  double top = -1e30, total = 0;
  for (int64_t column = first + low; column <= first + position; ++column) {
    double score = 0;
    for (int64_t i = 0; i < size; ++i) {
      score += q[i] * number(cache, cache.keys, cache.key_scales, column, i);
    }
    scores.push_back(score);
    top = std::max(top, score);
  }
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - top);
    total += weight;
    for (int64_t j = 0; j < size; ++j) {
      const int64_t column = first + low + static_cast<int64_t>(i);
      mixed[j] += weight * number(cache, cache.values, cache.value_scales, column, j);
    }
  }
  for (double& x : mixed) x /= total;
  return mixed;
}

void step(const AttendInput& in, const AttendCache& cache, int64_t rows, const int32_t* position,
          const bool* active) {
  const int64_t blocks = (cache.columns + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
  std::vector<float> partials(
      static_cast<size_t>(rows * in.heads * blocks * (cache.size + 2)));
  std::vector<int32_t> counters(static_cast<size_t>(rows * (cache.heads + 1) + 1));
  attend_step({in, cache, rows, position, active, partials.data(), blocks, counters.data(),
               counters.data() + rows + 1, 0});
}

bool is_close(const AttendInput& in, const AttendCache& cache, int64_t row, int64_t slot,
              int64_t position) {
  const bool rounds = std::strcmp(jaxllama_isa(), "avx512") == 0 &&
                      (cache.kind == CacheKind::bf16 || cache.kind == CacheKind::int8);
  for (int64_t head = 0; head < in.heads; ++head) {
    const std::vector<double> right = expected(in, cache, row, head, slot, position);
    const float* out = in.out + (row * in.heads + head) * cache.size;
    double error = 0;
    for (int64_t i = 0; i < cache.size; ++i) error += std::pow(out[i] - right[i], 2);
    if (!(std::sqrt(error / static_cast<double>(cache.size)) < (rounds ? 3e-2 : 1e-5))) {
      return false;
    }
  }
  return true;
}

// A prompt, then the same rows in steps of one or more, among neighbours that are not active.
bool sound(AttendCache like, int64_t heads, int64_t window, Digest& digest) {
  Cache one(like), other = one;
  const AttendCache prompted = one.described(like), stepped = other.described(like);
  const int64_t slot = within(0, like.slots - 1), start = within(0, like.columns - 1);
  const int64_t count = within(1, std::min<int64_t>(like.columns - start, 20));
  Rows rows(like, heads, count);
  const AttendInput in = rows.described(heads, window);
  attend_prompt({in, prompted, slot, start, count, 0});
  const int64_t together = within(1, 3);
  for (int64_t first = 0; first < count; first += together) {
    Rows each(like, heads, together * like.slots);
    std::vector<int32_t> position(static_cast<size_t>(together * like.slots), -1);
    bool active[3 * 4] = {};
    for (int64_t row = first; row < std::min(first + together, count); ++row) {
      if (row % 7 == 0 && !is_close(in, prompted, row, slot, start + row)) return false;
      const int64_t place = (row - first) * like.slots + slot;
      const auto copy = [&](const std::vector<float>& from, std::vector<float>& to, int64_t width) {
        std::copy_n(from.begin() + row * width, width, to.begin() + place * width);
      };
      copy(rows.qkv, each.qkv, (heads + 2 * like.heads) * like.size);
      copy(rows.cos, each.cos, like.size / 2);
      copy(rows.sin, each.sin, like.size / 2);
      position[place] = static_cast<int32_t>(start + row);
      active[place] = true;
    }
    step(each.described(heads, window), stepped, together * like.slots, position.data(), active);
    const int64_t width = heads * like.size;
    for (int64_t row = first; row < std::min(first + together, count); ++row) {
      const float* out = &each.out[((row - first) * like.slots + slot) * width];
      if (std::memcmp(out, &rows.out[row * width], 4 * width) != 0) return false;
    }
  }
  digest.add(rows.out);
  return one == other;
}

void plant() {
  AttendCache like{CacheKind::f32, nullptr, nullptr, nullptr, nullptr, 1, 1, 40, 32};
  Cache cache(like);
  like = cache.described(like);
  like.columns = 41;
  Rows rows(like, 1, 1);
  const int32_t position = 40;
  const bool active = true;
  step(rows.described(1, 0), like, 1, &position, &active);
}

}  // namespace

int main(int count, char**) {
  if (count > 1) plant();
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    if (!jaxllama_set_isa(isa)) continue;
    Digest digest;
    for (int round = 0; round < 8; ++round) {
      set_threads(static_cast<int>(within(1, 3)));
      const int64_t heads = within(1, 3), group = round == 6 ? 70 : within(1, 9);
      const AttendCache like{static_cast<CacheKind>(round % 4), nullptr, nullptr, nullptr, nullptr,
                             within(1, 4), heads, within(1, 520), 16 * within(2, 16)};
      const bool has_window = within(0, 1) == 1;  // drawn first on every compiler
      const int64_t window = has_window ? within(1, 400) : 0;
      if (!sound(like, heads * group, window, digest)) {
        std::printf("%s: wrong for kind %d, slots %d, heads %d, group %d, columns %d, size %d, "
                    "window %d\n", isa, round % 4, static_cast<int>(like.slots),
                    static_cast<int>(heads), static_cast<int>(group),
                    static_cast<int>(like.columns), static_cast<int>(like.size),
                    static_cast<int>(window));
        return 1;
      }
    }
    digest.print(isa);
  }
  return 0;
}
