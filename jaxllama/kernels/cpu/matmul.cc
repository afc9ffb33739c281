#include "matmul.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "isa.h"
#include "pool.h"
#include "scratch.h"

namespace jaxllama {
namespace {

constexpr size_t kPassBytes = size_t{4} << 20;  // prepared rows kept at a time
constexpr size_t kCacheBytes = size_t{384} << 10;  // prepared rows that stay in the cache of a core
constexpr size_t kPanelCacheBytes = size_t{2} << 20;  // the same, where every run unpacks weights
constexpr int64_t kFewRows = 4;         // up to this many, the calling thread prepares all rows
constexpr int64_t kManyRows = 128;      // from here on, rows are split over threads, else outputs
constexpr int64_t kPartsPerThread = 8;  // so that all threads end at about the same time

// Says whether inputs and weights are multiplied as pairs of bfloat16 in matrix tiles.
bool in_tiles(const Weights& weights, const Rows& rows) {
  if (isa() != Isa::amx && isa() != Isa::emulated) return false;
  return weights.kind == Kind::bf16 || (is_packed(weights.kind) && rows.of_prompt);
}

const MatmulOps& tile_ops() {
#if JAXLLAMA_AMX
  if (isa() == Isa::amx) return amx::matmul_ops;
#endif
  return emulated::matmul_ops;
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

struct RowBytes {
  size_t inputs, scales, starts, sums, apart, aparts;

  explicit RowBytes(const Weights& weights)
      : inputs(weights.blocks * kBlock * input_bytes(weights.kind)),
        scales(is_packed(weights.kind) ? weights.blocks * sizeof(Scale) : 0),
        starts(is_packed(weights.kind) ? weights.blocks * sums_of(weights.kind) * sizeof(int32_t) : 0),
        sums(is_packed(weights.kind)
                 ? (weights.blocks + weights.group - 1) / weights.group * sizeof(float)
                 : 0),
        apart(is_packed(weights.kind) ? weights.blocks * sizeof(Apart) : 0),
        aparts(is_packed(weights.kind) ? sizeof(int32_t) : 0) {}

  size_t total() const { return inputs + scales + starts + sums + apart + aparts; }
};

bool lay_out(const RowBytes& bytes, int64_t rows, Prepared* prepared) {
  const size_t sizes[] = {bytes.inputs, bytes.scales, bytes.starts,
                          bytes.sums,   bytes.apart,  bytes.aparts};
  size_t needed = 0;
  for (const size_t size : sizes) needed += aligned(rows * size);
  unsigned char* room = scratch(needed, Scratch::call);
  if (room == nullptr) return false;
  const auto take = [&](size_t size) {
    unsigned char* const taken = room;
    room += aligned(rows * size);
    return taken;
  };
  prepared->inputs = take(bytes.inputs);
  prepared->scales = reinterpret_cast<Scale*>(take(bytes.scales));
  prepared->starts = reinterpret_cast<int32_t*>(take(bytes.starts));
  prepared->sums = reinterpret_cast<float*>(take(bytes.sums));
  prepared->apart = reinterpret_cast<Apart*>(take(bytes.apart));
  prepared->aparts = reinterpret_cast<int32_t*>(take(bytes.aparts));
  return true;
}

// The way of a call: how its rows are prepared, and how they are multiplied.
struct Way {
  const MatmulOps& ops;
  Weights prepared_for;  // the weights, or bfloat16 ones of the same shape
};

Way way_of(const Weights& weights, const Rows& rows) {
  if (!in_tiles(weights, rows)) return {JAXLLAMA_PICK(matmul_ops), weights};
  Weights pairs = weights;
  pairs.kind = Kind::bf16;
  return {tile_ops(), pairs};
}

// Prepares and multiplies rows that fit into the scratch memory.
void multiply_pass(const Way& way, const Weights& weights, const Rows& rows, const Finish& finish,
                   const Bands& bands, const Prepared& prepared) {
  const MatmulOps &ops = way.ops, &vectors = JAXLLAMA_PICK(matmul_ops);
  const auto prepare = [&](int64_t band) {
    vectors.prepare(way.prepared_for, rows, prepared, band_of(bands, band), band_start(bands, band));
  };
  const bool few = bands.rows <= kFewRows;
  parallel_for(few ? 1 : static_cast<int>(bands.count), [&](int part) {
    for (int64_t band = part; band < (few ? bands.count : part + 1); ++band) prepare(band);
  });

  // A part is a run of bands times a chunk of tiles. Few rows: one run, so that each weight is read
  // once, by one thread. Many rows: runs that fit into the cache of a core, which reads all
  // weights; at least one run per thread, so that a row stays on the core that prepared it.
  const auto row_bytes = static_cast<int64_t>(RowBytes(way.prepared_for).total());
  const size_t panel_size = ops.panel_bytes == nullptr ? 0 : ops.panel_bytes(weights, bands);
  const auto cache = static_cast<int64_t>(panel_size == 0 ? kCacheBytes : kPanelCacheBytes);
  const int64_t in_cache = cache / row_bytes;
  const int64_t enough = bands.rows < kManyRows || panel_size > 0 ? 1 : threads();
  const int64_t runs =
      std::min(bands.count, std::max(enough, (bands.rows + in_cache) / (in_cache + 1)));
  const int64_t wanted = kPartsPerThread * threads() / runs;
  const int64_t per_chunk = std::max<int64_t>(1, weights.tiles / std::max<int64_t>(1, wanted));
  const int64_t chunks = (weights.tiles + per_chunk - 1) / per_chunk;
  parallel_for(static_cast<int>(runs * chunks), [&](int part) {
    const int64_t run = part / chunks, chunk = part % chunks;
    const int64_t last_tile = std::min(weights.tiles, (chunk + 1) * per_chunk);
    const int64_t first_band = run * bands.count / runs;
    const int64_t last_band = (run + 1) * bands.count / runs;
    uint8_t* const panel = panel_size == 0 ? nullptr : scratch(panel_size, Scratch::panel);
    if (panel_size > 0 && panel == nullptr) std::abort();  // a worker cannot report an error
    for (int64_t tile = chunk * per_chunk; tile < last_tile; ++tile) {
      if (panel != nullptr) ops.unpack(weights, tile, panel);
      ops.multiply(weights, tile, panel, prepared, {bands, first_band, last_band}, finish);
    }
    if (ops.release != nullptr) ops.release();
  });
}

}  // namespace

bool matmul(const Weights& weights, const Rows& rows, const Finish& finish) {
  const Way way = way_of(weights, rows);
  const RowBytes bytes(way.prepared_for);
  const int64_t most_rows = way.ops.most_rows;
  const int64_t room = static_cast<int64_t>(kPassBytes / bytes.total());
  const int64_t most = std::max<int64_t>(1, room / most_rows) * most_rows;
  for (int64_t first = 0; first < rows.count; first += most) {
    const int64_t count = std::min(most, rows.count - first);
    const Bands bands{first, count, (count + most_rows - 1) / most_rows};
    Prepared prepared;
    if (!lay_out(bytes, count, &prepared)) return false;
    multiply_pass(way, weights, rows, finish, bands, prepared);
  }
  return true;
}

bool matmul_of(const bool* wanted, bool clear, const Weights& weights, const Rows& rows,
               const Finish& finish) {
  thread_local std::vector<int64_t> places;  // both keep their memory from call to call
  thread_local std::vector<float> together;
  places.clear();
  for (int64_t row = 0; row < rows.count; ++row) {
    if (wanted[row]) places.push_back(row);
  }
  const auto count = static_cast<int64_t>(places.size());
  const int64_t width = rows.width, outward = finish.outward, added = added_width(finish);
  Rows some = rows;
  Finish there = finish;
  some.count = count;
  if (count > 0 && places.back() >= count) {  // gather the active rows, then move results back
    together.resize(static_cast<size_t>(count * (width + added)));
    float* const x = together.data();
    float* const residual = x + count * width;
    for (int64_t each = 0; each < count; ++each) {
      std::memcpy(x + each * width, rows.x + places[each] * width, width * sizeof(float));
      if (finish.residual == nullptr) continue;
      std::memcpy(residual + each * added, finish.residual + places[each] * added,
                  added * sizeof(float));
    }
    some.x = x;
    if (finish.residual != nullptr) there.residual = residual;
  }
  if (!matmul(weights, some, there)) return false;
  int64_t left = count;
  for (int64_t row = rows.count - 1; row >= 0; --row) {  // backwards: overwrites no result
    float* const to = finish.y + row * outward;
    if (!wanted[row]) {
      if (clear) std::memset(to, 0, outward * sizeof(float));
    } else if (--left != row) {
      std::memcpy(to, finish.y + left * outward, outward * sizeof(float));
    }
  }
  return true;
}

}  // namespace jaxllama
