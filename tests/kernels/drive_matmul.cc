// Runs the matmul kernels over random shapes and holds them against sums in double precision.
//
// Built with sanitizers by test_build.py: every array is exactly as long as promised, so a kernel that
// reads or writes one element too many is caught. With an argument it plants such an error.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "digest.h"
#include "half.h"
#include "matmul.h"
#include "pool.h"
#include "take_rows.h"

extern "C" {
const char* jaxllama_isa();
int jaxllama_set_isa(const char* name);
void jaxllama_tile_packed(int, int, const uint8_t*, int64_t, int64_t, int64_t, int, uint8_t*);
void jaxllama_tile_dense(int, int, const uint8_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int,
                         uint8_t*);
int jaxllama_find_steps(int, const float*, int64_t, int64_t, uint16_t*, uint8_t*);
}

using namespace jaxllama;

namespace {

std::mt19937 noise(7);

int64_t upto(int64_t most) { return std::uniform_int_distribution<int64_t>(0, most)(noise); }
float normal() { return std::normal_distribution<float>()(noise); }

// A random matrix: what the kernels read, and the arrays that hold it.
struct Matrix {
  Weights weights{};
  int64_t width = 0, outward = 0;
  std::vector<uint8_t> codes, steps;
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  std::vector<float> values;  // [outward, width], as take_rows says
};

void fill_scales(Matrix& m) {
  Weights& w = m.weights;
  const bool in_halves = w.kind == Kind::q6;
  w.scaling = in_halves ? Scales::halves : static_cast<Scales>(1 + upto(w.kind != Kind::q8 ? 2 : 1));
  const bool steps = w.scaling == Scales::steps || in_halves;
  w.has_minima = !in_halves && (w.scaling == Scales::steps || upto(1) == 1);
  w.group = steps || upto(1) == 0 ? 1 : 4;
  w.zero = in_halves ? 32 : w.kind == Kind::q5 ? 16 : w.kind == Kind::q4 && upto(1) == 1 ? 8 : 0;
  const int64_t per_scale = steps ? kBlocksPerUnit : w.group;
  const int64_t groups = (w.blocks + per_scale - 1) / per_scale;
  const auto count = static_cast<size_t>(w.tiles * groups * (w.has_minima ? 2 : 1) * kTile);
  if (w.scaling == Scales::full) {
    for (size_t each = 0; each < count; ++each) m.floats.push_back(0.01f * normal());
    w.scales = m.floats.data();
  } else {
    for (size_t each = 0; each < count; ++each) m.halves.push_back(0x1c00 + upto(0x400));
    w.scales = m.halves.data();
  }
  if (steps) {
    for (int64_t each = 0; each < w.tiles * w.blocks * 2 * kTile; ++each) {
      m.steps.push_back(static_cast<uint8_t>(upto(in_halves ? 255 : 63)));
    }
    w.steps = m.steps.data();
  }
}

Matrix random_matrix(Kind kind) {
  Matrix m;
  Weights& w = m.weights;
  w.kind = kind;
  w.group = 1;
  w.blocks = is_packed(kind) && upto(1) == 1 ? 8 : 1 + upto(5);
  m.width = w.blocks * kBlock - (is_packed(kind) ? 0 : upto(kBlock - 1));
  m.outward = 1 + upto(100);
  w.tiles = (m.outward + kTile - 1) / kTile;
  m.codes.resize(static_cast<size_t>(w.tiles * w.blocks) * block_bytes(kind));
  w.codes = m.codes.data();
  if (is_packed(kind)) {
    fill_scales(m);
    if (w.scaling >= Scales::steps && w.blocks % kBlocksPerUnit != 0) return random_matrix(kind);
    const int bits = kind == Kind::q4 ? 4 : kind == Kind::q5 ? 5 : kind == Kind::q6 ? 6 : 8;
    std::vector<uint8_t> stored(static_cast<size_t>(m.outward * m.width / (bits == 4 ? 2 : 1)));
    const int most = bits == 5 || bits == 6 ? (1 << bits) - 1 : 255;
    for (uint8_t& each : stored) each = static_cast<uint8_t>(upto(most) - w.zero * (most != 255));
    jaxllama_tile_packed(bits, w.zero, stored.data(), m.outward, w.blocks, 0, -1, m.codes.data());
  } else {
    const int size = kind == Kind::f32 ? 4 : 2;
    std::vector<uint8_t> stored(static_cast<size_t>(m.outward * m.width * size));
    for (int64_t each = 0; each < m.outward * m.width; ++each) {
      const float number = normal();
      const auto narrow = static_cast<uint16_t>(0x3000 + upto(0x800));
      if (kind == Kind::f32) std::memcpy(&stored[each * 4], &number, 4);
      if (kind != Kind::f32) std::memcpy(&stored[each * 2], &narrow, 2);
    }
    jaxllama_tile_dense(size, kind == Kind::bf16, stored.data(), m.outward, m.width, m.width * size,
                        size, 0, -1, m.codes.data());
  }
  std::vector<int32_t> all(static_cast<size_t>(m.outward));
  for (size_t each = 0; each < all.size(); ++each) all[each] = static_cast<int32_t>(each);
  m.values.resize(static_cast<size_t>(m.outward * m.width));
  take_rows(w, all.data(), m.outward, m.outward, m.width, m.values.data());
  return m;
}

struct Case {
  std::vector<char> wanted;  // one for each row, or none: all
  Matrix matrix;
  int64_t rows;
  bool of_prompt;
  std::vector<float> x, residual, bias, y;
  std::vector<int32_t> order;
};

Case random_case() {
  Case c;
  c.matrix = random_matrix(static_cast<Kind>(upto(6)));
  c.rows = 1 + upto(36);
  c.of_prompt = upto(1) == 1;
  for (int64_t each = 0; each < c.rows * c.matrix.width; ++each) {
    c.x.push_back(upto(49) == 0 ? 100.0f * normal() : normal());  // some tower above their row
  }
  if (upto(1) == 1) {
    for (int64_t each = 0; each < c.rows * c.matrix.outward; ++each) c.residual.push_back(normal());
  }
  if (upto(1) == 1) {
    for (int64_t each = 0; each < c.matrix.weights.tiles * kTile; ++each) c.bias.push_back(normal());
  }
  if (upto(2) == 0) {
    for (int64_t each = 0; each < c.matrix.width; ++each) {
      c.order.push_back(static_cast<int32_t>(c.matrix.width - 1 - each));
    }
  }
  if (upto(1) == 1) {
    for (int64_t each = 1; each < c.rows; ++each) c.wanted.push_back(upto(1) == 1);
    c.wanted.push_back(1);
  }
  c.y.resize(static_cast<size_t>(c.rows * c.matrix.outward), -1.0f);
  return c;
}

template <class T>
const T* or_null(const std::vector<T>& from) {
  return from.empty() ? nullptr : from.data();
}

bool run(Case& c) {
  const Rows rows{c.x.data(), nullptr, or_null(c.order), 0.0f, c.rows, c.matrix.width,
                  c.of_prompt};
  const Finish finish{or_null(c.bias), or_null(c.residual), c.y.data(), c.matrix.outward, false};
  if (c.wanted.empty()) return matmul(c.matrix.weights, rows, finish);
  const auto* wanted = reinterpret_cast<const bool*>(c.wanted.data());
  return matmul_of(wanted, true, c.matrix.weights, rows, finish);
}

// The largest error, in units of what rounding the inputs may do: about 1 is right, 10 is not.
double worst(const Case& c) {
  const Matrix& m = c.matrix;
  double most = 0.0;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t out = 0; out < m.outward; ++out) {
      double sum = c.bias.empty() ? 0.0 : c.bias[out];
      double squares = 1e-6, largest = 0.0;
      if (!c.wanted.empty() && c.wanted[row] == 0) {
        most = std::fmax(most, c.y[row * m.outward + out] == 0.0f ? 0.0 : 1e9);
        continue;
      }
      if (!c.residual.empty()) sum += c.residual[row * m.outward + out];
      for (int64_t k = 0; k < m.width; ++k) {
        const double x = c.x[row * m.width + (c.order.empty() ? k : c.order[k])];
        const double w = m.values[out * m.width + k];
        sum += x * w;
        squares += w * w;
        largest = std::fmax(largest, std::fabs(x));
      }
      const double unit = largest / 127.0 * std::sqrt(squares);
      most = std::fmax(most, std::fabs(sum - c.y[row * m.outward + out]) / unit);
    }
  }
  return most;
}

int check_steps() {
  std::vector<float> numbers;
  for (int each = 0; each < 16 * kBlocksPerUnit; ++each) {
    numbers.push_back(widen_half(static_cast<uint16_t>(1 + 37 * (each / kBlocksPerUnit))) *
                      static_cast<float>(upto(63)));
  }
  std::vector<uint16_t> units(16);
  std::vector<uint8_t> steps(numbers.size());
  if (!jaxllama_find_steps(0, numbers.data(), 4, 4, units.data(), steps.data())) return 1;
  for (size_t each = 0; each < numbers.size(); ++each) {
    if (widen_half(units[each / kBlocksPerUnit]) * steps[each] != numbers[each]) return 1;
  }
  numbers[3] = 0.1f;
  if (jaxllama_find_steps(0, numbers.data(), 4, 4, units.data(), steps.data())) return 1;
  for (size_t each = 0; each < numbers.size(); ++each) {
    numbers[each] = 0.0625f * static_cast<float>(upto(255) - 128);
  }
  if (!jaxllama_find_steps(1, numbers.data(), 4, 2, units.data(), steps.data())) return 1;
  for (size_t each = 0; each < numbers.size(); ++each) {
    const auto step = static_cast<float>(static_cast<int8_t>(steps[each]));
    if (widen_half(units[each / 16]) * step != numbers[each]) return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char**) {
  set_threads(3);
  if (check_steps() != 0) {
    std::puts("steps are not found");
    return 1;
  }
  for (const char* isa : {"portable", "emulated", "avx2", "avx512"}) {
    if (!jaxllama_set_isa(isa)) continue;
    Digest digest;
    for (int each = 0; each < 80; ++each) {
      Case c = random_case();
      if (argc > 1) c.x.pop_back(), c.x.shrink_to_fit();
      if (!run(c)) return 1;
      digest.add(c.y);
      const double error = worst(c);
      if (!(error < 6.0)) {
        std::printf("%s, kind %d, %d rows of %d: error %.1f\n", isa,
                    static_cast<int>(c.matrix.weights.kind), static_cast<int>(c.rows),
                    static_cast<int>(c.matrix.width), error);
        return 1;
      }
    }
    digest.print(isa);
  }
  return 0;
}
