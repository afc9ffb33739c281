// Attention, written once for every instruction set.
//
// Included by attend_portable.cc, attend_avx2.cc and attend_avx512.cc after they have defined their
// vectors: WIDTH, Vec, load, store, set, first, add, sub, mul, divide, fma, larger, at_least,
// round_even, times_power, keep, highest, sum, transpose, widen, and DotOf<T>::Dot. All code is in
// an unnamed namespace: the linker must never replace the copy of one instruction set by that of
// another. For the same reason the standard library is used only where it generates no functions.
// Compiled with -ffp-contract=off: only an explicit `fma` rounds a product and a sum together.
//
// This file has the parts of a call: of a decode step, and of a prompt. The rest is in the files that
// it includes, in this order.
//
// A tile is a few rows of one slot and one key/value head: all their query vectors are multiplied
// by the keys of a block together. Keys are packed so that the lanes of a vector are columns (no
// sums across lanes), values so that lanes are places of a head; both products use the same loop.

constexpr int BLOCK = ATTEND_BLOCK;
constexpr int CHUNK = ATTEND_CHUNK;
constexpr int TILE_ROWS = 6;  // of one register tile
constexpr float NOTHING = -__builtin_inff();

// The dot products of queries with a cache of T: DotOf<T>::Dot, defined after this file is included.
template <class T>
struct DotOf;

inline std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger_of(std::int64_t a, std::int64_t b) { return a < b ? b : a; }
inline std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return smaller_of(larger_of(x, low), high);
}

// Computes 2^x for x <= 0: 0 below 2^-150; NaN stays NaN.
inline Vec exp2_of(Vec x) {
  x = at_least(x, -200.0f);
  const Vec power = round_even(x), rest = sub(x, power);
  // The minimax polynomial of this degree on -0.5..0.5; its error is at most 2e-7.
  Vec y = set(1.327647245e-3f);
  y = fma(y, rest, set(9.675540961e-3f));
  y = fma(y, rest, set(5.550713092e-2f));
  y = fma(y, rest, set(2.402212024e-1f));
  y = fma(y, rest, set(6.931469440e-1f));
  y = fma(y, rest, set(1.0f));
  return times_power(y, power);
}

#include "attend_product.h"
#include "attend_tile.h"
#include "attend_block.h"
#include "attend_column.h"

inline std::int64_t first_seen(std::int64_t position, std::int64_t window) {
  return window == 0 ? 0 : larger_of(position - window + 1, 0);
}

// Folds the partial results of a row and head; the part that finishes last calls this.
inline void fold_partials(const AttendStep& call, std::int64_t row, std::int64_t head,
                          std::int64_t group, std::int64_t from, std::int64_t to, float* out) {
  const std::int64_t size = call.cache.size;
  for (std::int64_t i = 0; i < group; ++i) {
    const std::int64_t query = row * call.input.heads + head * group + i;
    const float* partial = call.partials + query * call.blocks * (size + 2);
    Share share{NOTHING, 0.0f};
    std::memset(out, 0, static_cast<std::size_t>(size) * sizeof(float));
    for (std::int64_t block = from; block < to; ++block) {
      const float* one = partial + block * (size + 2);
      fold(share, out, {one[size], one[size + 1]}, one, size);
    }
    finish(share, out, size, call.input.out + query * size);
  }
}

// Computes blocks [from, to) of one row and head and stores partial results.
template <class T>
void step_blocks(const AttendStep& call, std::int64_t row, std::int64_t head, std::int64_t from,
                 std::int64_t to, float* scratch) {
  using Dot = typename DotOf<T>::Dot;
  const AttendInput& input = call.input;
  const std::int64_t slot = row % call.cache.slots;
  const std::int64_t size = call.cache.size, group = input.heads / call.cache.heads;
  const std::int64_t width = (input.heads + 2 * call.cache.heads) * size;
  Side<T> side = side_of<T>(call.cache, slot, head);
  if (slot * call.cache.heads + head + 1 < call.cache.slots * call.cache.heads) {
    side.next = side.keys + call.cache.columns * size;
  }
  for (std::int64_t start = 0; start < group; start += ATTEND_QUERIES) {
    Tile tile(scratch, 1, smaller_of(ATTEND_QUERIES, group - start), size);
    tile.high[0] = call.position[row] + 1;
    tile.low[0] = first_seen(call.position[row], input.window);
    const std::int64_t query = head * group + start;
    put_queries<Dot>(input, width, size, row, query, tile.group, tile.mixed, tile.queries);
    for (std::int64_t block = from; block < to; ++block) {
      attend_block<T, Dot>(side, block, tile);
      for (std::int64_t i = 0; i < tile.group; ++i) {
        const std::int64_t place = (row * input.heads + query + i) * call.blocks + block;
        float* partial = call.partials + place * (size + 2);
        std::memcpy(partial, tile.mixed + i * size, static_cast<std::size_t>(size) * sizeof(float));
        partial[size] = tile.block_share[i].top;
        partial[size + 1] = tile.block_share[i].total;
      }
    }
  }
}

// Computes the part (row, run of blocks, head); the parts of a row are consecutive. With one row per
// slot, the part with the row's own column appends it: no other part reads that block.
template <class T>
void step_part(const AttendStep& call, std::int64_t part, float* scratch) {
  const AttendCache& cache = call.cache;
  std::int64_t row = 0, beyond = call.rows;
  while (beyond - row > 1) {
    const std::int64_t middle = (row + beyond) / 2;
    (call.first_part[middle] <= part ? row : beyond) = middle;
  }
  const std::int64_t inner = part - call.first_part[row], head = inner % cache.heads;
  const std::int64_t position = call.position[row];
  const std::int64_t first = first_seen(position, call.input.window) / BLOCK;
  const std::int64_t last = position / BLOCK;
  const std::int64_t from = first + inner / cache.heads * call.run;
  const std::int64_t to = smaller_of(from + call.run, last + 1);
  if (to == last + 1 && call.rows == cache.slots) {
    append_column<T>(call.input, cache, row, head, row, position, scratch);
  }
  step_blocks<T>(call, row, head, from, to, scratch);
  std::int32_t* pending = call.pending + row * cache.heads + head;
  if (__atomic_sub_fetch(pending, 1, __ATOMIC_ACQ_REL) > 0) return;
  fold_partials(call, row, head, call.input.heads / cache.heads, first, last + 1, scratch);
}

// Writes the keys and values of a row of a decode step to the cache.
template <class T>
void append_row_part(const AttendStep& call, std::int64_t row, float* scratch) {
  const AttendCache& cache = call.cache;
  for (std::int64_t head = 0; head < cache.heads; ++head) {
    append_column<T>(call.input, cache, row, head, row % cache.slots, call.position[row], scratch);
  }
}

template <class T>
void append_part(const AttendPrompt& call, std::int64_t part, float* scratch) {
  const std::int64_t from = part * ATTEND_APPEND;
  for (std::int64_t row = from; row < smaller_of(from + ATTEND_APPEND, call.count); ++row) {
    for (std::int64_t head = 0; head < call.cache.heads; ++head) {
      append_column<T>(call.input, call.cache, row, head, call.slot, call.start + row, scratch);
    }
  }
}

// Computes rows [from, to) of one head, at most ATTEND_QUERIES queries at a time.
template <class T>
void prompt_rows(const AttendPrompt& call, std::int64_t head, std::int64_t from, std::int64_t to,
                 float* scratch) {
  using Dot = typename DotOf<T>::Dot;
  const AttendInput& input = call.input;
  const std::int64_t size = call.cache.size, group = input.heads / call.cache.heads;
  const std::int64_t width = (input.heads + 2 * call.cache.heads) * size;
  const Side<T> side = side_of<T>(call.cache, call.slot, head);
  for (std::int64_t start = 0; start < group; start += ATTEND_QUERIES) {
    Tile tile(scratch, to - from, smaller_of(ATTEND_QUERIES, group - start), size);
    const std::int64_t query = head * group + start;
    for (std::int64_t row = 0; row < tile.rows; ++row) {
      tile.high[row] = call.start + from + row + 1;
      tile.low[row] = first_seen(tile.high[row] - 1, input.window);
      put_queries<Dot>(input, width, size, from + row, query, tile.group, tile.mixed,
                       tile.queries + row * tile.group * size);
    }
    tile.begin();
    for (std::int64_t block = tile.low[0] / BLOCK; block * BLOCK < tile.high[tile.rows - 1];
         ++block) {
      const Sight sight = attend_block<T, Dot>(side, block, tile);
      for (std::int64_t i = 0; i < tile.count(); ++i) {
        if (!sight.sees(i / tile.group)) continue;
        fold(tile.share[i], tile.out + i * size, tile.block_share[i], tile.mixed + i * size, size);
      }
    }
    for (std::int64_t i = 0; i < tile.count(); ++i) {
      const std::int64_t row = from + i / tile.group;
      finish(tile.share[i], tile.out + i * size, size,
             input.out + (row * input.heads + query + i % tile.group) * size);
    }
  }
}

// Computes the part (tile, head). Tiles begin at multiples of their size in cache columns, so no
// tile spans two blocks; the longest come first.
template <class T>
void prompt_part(const AttendPrompt& call, std::int64_t part, float* scratch) {
  const std::int64_t last = (call.start + call.count - 1) / call.tile;
  const std::int64_t column = (last - part / call.cache.heads) * call.tile;
  const std::int64_t from = larger_of(column - call.start, 0);
  const std::int64_t to = smaller_of(column + call.tile - call.start, call.count);
  prompt_rows<T>(call, part % call.cache.heads, from, to, scratch);
}

// Defines a function that runs a part of a call with the type of its cache.
#define JAXLLAMA_ATTEND_BY_KIND(name, Call)                              \
  [[maybe_unused]] void name(const Call& call, std::int64_t part, float* scratch) {       \
    switch (call.cache.kind) {                                           \
      case CacheKind::bf16:                                              \
        return name##_part<Bf16>(call, part, scratch);                   \
      case CacheKind::f16:                                               \
        return name##_part<Half>(call, part, scratch);                   \
      case CacheKind::f32:                                               \
        return name##_part<float>(call, part, scratch);                  \
      case CacheKind::int8:                                              \
        return name##_part<std::int8_t>(call, part, scratch);            \
    }                                                                    \
  }

JAXLLAMA_ATTEND_BY_KIND(step, AttendStep)
JAXLLAMA_ATTEND_BY_KIND(append_row, AttendStep)
JAXLLAMA_ATTEND_BY_KIND(append, AttendPrompt)
JAXLLAMA_ATTEND_BY_KIND(prompt, AttendPrompt)
