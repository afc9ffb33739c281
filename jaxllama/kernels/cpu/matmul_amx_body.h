// The matmul kernels with matrix tiles (AMX), written once for the processor and its emulation.
//
// Included by matmul_amx.cc and matmul_emulated.cc inside their unnamed namespaces, after the
// vectors, the tile instructions (amx_tiles.h), and three functions on a vector of codes, which are
// four bytes for each of sixteen outputs: `codes_of` reads one from a block, `lifted` makes floats
// of one of the four bytes, plus 2^bits; `store_pairs` stores two vectors as pairs of bfloat16.
//
// Inputs and weights are bfloat16, sums float32. Packed weights are unpacked to bfloat16, a tile of
// outputs at a time, once for all bands: to a panel in the layout that stored bfloat16 weights have
// (weights.h). A sum takes its 32 inputs of a block in one instruction, block after block, so it
// depends on neither other rows nor their number.
#define SEPARATE __attribute__((noinline))

#include "matmul_ends.h"
#include "matmul_finish.h"
#include "matmul_scales.h"

constexpr int kMostRows = 32;  // of a band: two tiles
constexpr int kTileRows = 16;
constexpr auto kPairBytes = static_cast<int64_t>(block_bytes(Kind::bf16));  // of a block

// Blocks that stay in the first cache of a core while all bands are multiplied by them.
constexpr int64_t kMostBlocks = 18;
constexpr int64_t kSums = kMostRows * kTile;  // of a band

// Returns the bytes of the unpacked weights, which the sums of all bands follow.
int64_t weight_bytes(const Weights& weights) {
  return is_packed(weights.kind) ? weights.blocks * kPairBytes : 0;
}

size_t panel_bytes(const Weights& weights, const Bands& bands) {
  return static_cast<size_t>(weight_bytes(weights) + bands.count * kSums * 4);
}

// Unpacks sixteen inputs of a block, for the sixteen outputs of half h.
template <int bits>
INLINE void unpack_part(const uint8_t* codes, int i, int h, Vec scale, Vec low, uint16_t* to) {
  UNROLL for (int j = 0; j < 4; ++j) {
    const auto four = codes_of<bits>(codes, i, j, h);
    Vec numbers[4];
    numbers[0] = fma(scale, lifted<bits, 0>(four), low);
    numbers[1] = fma(scale, lifted<bits, 1>(four), low);
    numbers[2] = fma(scale, lifted<bits, 2>(four), low);
    numbers[3] = fma(scale, lifted<bits, 3>(four), low);
    uint16_t* const at = to + ((8 * i + 2 * j) * 2 + h) * kTile;
    store_pairs(at, numbers[0], numbers[1]);
    store_pairs(at + 2 * kTile, numbers[2], numbers[3]);
  }
}

template <int bits, Scales scaling, bool minima>
SEPARATE void unpack_tile(const Weights& weights, int64_t tile, uint8_t* panel) {
  constexpr size_t bytes = block_bytes(kind_of(bits));
  constexpr int parts = bits == 6 ? 2 : 1;  // of a block, with scales of their own
  const int64_t groups = bits == 6 ? 2 * weights.blocks
                                   : (weights.blocks + weights.group - 1) / weights.group;
  const Scaler<scaling, minima> scaler(weights, tile, groups);
  const Vec zero_code = set(-static_cast<float>((1 << bits) + (bits == 8 ? 128 : weights.zero)));
  const uint8_t* codes = weights.codes + tile * weights.blocks * static_cast<int64_t>(bytes);
  auto* to = reinterpret_cast<uint16_t*>(panel);
  for (int64_t block = 0; block < weights.blocks; ++block) {
    UNROLL for (size_t line = 0; line < bytes; line += 64) {
      __builtin_prefetch(codes + kAhead + line);
    }
    Vec scale[2], minimum[2];
    for (int i = 0; i < 2; ++i) {
      if (i < parts) {
        scaler.read(bits == 6 ? 2 * block + i : block / weights.group, scale, minimum);
      }
      for (int h = 0; h < 2; ++h) {
        const Vec low = fma(scale[h], zero_code, minima ? minimum[h] : zero());
        unpack_part<bits>(codes, i, h, scale[h], low, to);
      }
    }
    codes += bytes;
    to += kPairBytes / 2;
  }
}

void unpack(const Weights& weights, int64_t tile, uint8_t* panel) {
#define UNPACK(bits, scaling, minima) unpack_tile<bits, Scales::scaling, minima>(weights, tile, panel)
#define SCALED(bits, scaling) \
  (weights.has_minima ? UNPACK(bits, scaling, true) : UNPACK(bits, scaling, false))
  switch (weights.kind) {
    case Kind::q4:
      if (weights.scaling == Scales::half) SCALED(4, half);
      if (weights.scaling == Scales::full) SCALED(4, full);
      if (weights.scaling == Scales::steps) UNPACK(4, steps, true);
      break;
    case Kind::q5:
      if (weights.scaling == Scales::half) SCALED(5, half);
      if (weights.scaling == Scales::full) SCALED(5, full);
      if (weights.scaling == Scales::steps) UNPACK(5, steps, true);
      break;
    case Kind::q6:
      UNPACK(6, halves, false);
      break;
    case Kind::q8:
      if (weights.scaling == Scales::half) SCALED(8, half);
      if (weights.scaling == Scales::full) SCALED(8, full);
      break;
    default:
      break;
  }
#undef SCALED
#undef UNPACK
}

// Some blocks of inputs.
struct Blocks {
  int64_t begin, end;
};

template <bool continues, int T>
INLINE void begin_sums(const float* from) {
  if constexpr (continues) {
    load_tile<T>(from, kTile * 4);
  } else {
    clear_tile<T>();
  }
}

// Multiplies the rows of one tile, or of two, by some blocks of weights. `shared`: other bands use
// the same weights next, which shall stay in the cache rather than these inputs.
template <bool two, bool shared, bool continues>
SEPARATE void multiply_pairs(const uint8_t* weights, const uint8_t* inputs, int64_t input_bytes,
                             int64_t blocks, float* sums) {
  begin_sums<continues, 0>(sums);
  begin_sums<continues, 1>(sums + kHalf);
  if (two) begin_sums<continues, 2>(sums + kTileRows * kTile);
  if (two) begin_sums<continues, 3>(sums + kTileRows * kTile + kHalf);
  for (int64_t block = 0; block < blocks; ++block) {
    shared ? stream_tile<4>(inputs, 64) : load_tile<4>(inputs, 64);
    load_tile<6>(weights, 128);
    add_pairs<0, 4, 6>();
    load_tile<7>(weights + 64, 128);
    add_pairs<1, 4, 7>();
    if (two) {
      shared ? stream_tile<5>(inputs + kTileRows * 64, 64)
             : load_tile<5>(inputs + kTileRows * 64, 64);
      add_pairs<2, 5, 6>();
      add_pairs<3, 5, 7>();
    }
    weights += kPairBytes;
    inputs += input_bytes;
  }
  store_tile<0>(sums, kTile * 4);
  store_tile<1>(sums + kHalf, kTile * 4);
  if (two) store_tile<2>(sums + kTileRows * kTile, kTile * 4);
  if (two) store_tile<3>(sums + kTileRows * kTile + kHalf, kTile * 4);
}

template <bool two, bool shared>
INLINE void multiply_blocks(const uint8_t* weights, const uint8_t* inputs, int64_t input_bytes,
                            Blocks blocks, float* sums) {
  weights += blocks.begin * kPairBytes;
  inputs += blocks.begin * input_bytes;
  const int64_t count = blocks.end - blocks.begin;
  blocks.begin == 0
      ? multiply_pairs<two, shared, false>(weights, inputs, input_bytes, count, sums)
      : multiply_pairs<two, shared, true>(weights, inputs, input_bytes, count, sums);
}

void multiply(const Weights& weights, int64_t tile, uint8_t* panel, const Prepared& from,
              const BandRun& run, const Finish& finish) {
  const uint8_t* numbers =
      is_packed(weights.kind) ? panel : weights.codes + tile * weights.blocks * kPairBytes;
  auto* const all_sums = reinterpret_cast<float*>(panel + weight_bytes(weights));
  const bool shared = run.end - run.begin > 1;
  const int64_t chunks = shared ? (weights.blocks + kMostBlocks - 1) / kMostBlocks : 1;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Blocks blocks{chunk * weights.blocks / chunks, (chunk + 1) * weights.blocks / chunks};
    for (int64_t index = run.begin; index < run.end; ++index) {
      const Band band = band_of(run.bands, index);
      const int64_t row_bytes = kBlock * 2, input_bytes = band.count * row_bytes;
      const uint8_t* inputs = from.inputs + band_start(run.bands, index) * weights.blocks * row_bytes;
      float* const sums = all_sums + (chunks == 1 ? 0 : index * kSums);
      shape_tiles(band.count);
      if (band.count > kTileRows) {
        shared ? multiply_blocks<true, true>(numbers, inputs, input_bytes, blocks, sums)
               : multiply_blocks<true, false>(numbers, inputs, input_bytes, blocks, sums);
      } else {
        shared ? multiply_blocks<false, true>(numbers, inputs, input_bytes, blocks, sums)
               : multiply_blocks<false, false>(numbers, inputs, input_bytes, blocks, sums);
      }
      if (chunk + 1 < chunks) continue;
      for (int r = 0; r < band.count; ++r) {
        const float* row = sums + r * kTile;
        finish_row(finish, tile, band.first + r, load(row), load(row + kHalf));
      }
    }
  }
}
