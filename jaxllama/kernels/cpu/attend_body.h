// Attention, written once for every instruction set.
//
// Included by attend_portable.cc, attend_avx2.cc and attend_avx512.cc after they have defined their
// vectors: WIDTH, Vec, load, store, set, first, add, subtract, multiply, divide, fma, larger,
// at_least, whole, times_power, keep, highest, sum, transpose, widen, and DotOf<T>::Dot. All code
// is in an unnamed namespace: the linker must never replace the copy of one instruction set by that
// of another. For the same reason the standard library is used only where it generates no
// functions. Compiled with -ffp-contract=off: only an explicit `fma` rounds a product and a sum
// together.
//
// A tile is a few rows of one slot and one key/value head: all their query vectors are multiplied
// by the keys of a block together. Keys are packed so that the lanes of a vector are columns (no
// sums across lanes), values so that lanes are places of a head; both products use the same loop.

constexpr int BLOCK = ATTEND_BLOCK;
constexpr int CHUNK = ATTEND_CHUNK;
constexpr int TILE_ROWS = 6;  // of one register tile
constexpr float NOTHING = -__builtin_inff();

inline std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger_of(std::int64_t a, std::int64_t b) { return a < b ? b : a; }
inline std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return smaller_of(larger_of(x, low), high);
}

// Computes 2^x for x <= 0: 0 below 2^-150; NaN stays NaN.
inline Vec exp2_of(Vec x) {
  x = at_least(x, -200.0f);
  const Vec power = whole(x), rest = subtract(x, power);
  // The minimax polynomial of this degree on -0.5..0.5; its error is at most 2e-7.
  Vec y = set(1.327647245e-3f);
  y = fma(y, rest, set(9.675540961e-3f));
  y = fma(y, rest, set(5.550713092e-2f));
  y = fma(y, rest, set(2.402212024e-1f));
  y = fma(y, rest, set(6.931469440e-1f));
  y = fma(y, rest, set(1.0f));
  return times_power(y, power);
}

// Prefetches the rows that are read two chunks later, as many rows as are read in the meantime: the
// prefetching of the processor stops at the end of a page.
struct Ahead {
  const char* from;  // null if no rows follow
  std::int64_t row;  // bytes

  void fetch(std::int64_t first, std::int64_t rows) const {
    if (from == nullptr) return;
    const char* end = from + (first + rows) * row;
    for (const char* at = from + first * row; at < end; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// Dot products in float32; a vector has one term of the sum.
struct Wide {
  static constexpr int PAIR = 1;

  static Vec step(Vec sum, Vec b, Vec a) { return fma(b, a, sum); }

  static void put_query(const float* from, std::int64_t size, float* to) {
    std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(float));
  }

  static void put_weights(float* row, Vec first, Vec second) {
    store(row, first);
    store(row + WIDTH, second);
  }
  static std::int64_t weight_place(std::int64_t column) { return column; }

  // Packs keys [count, size] to [size, CHUNK]; zeros fill the last vector from `count` on.
  template <class T>
  static void pack_keys(const T* rows, std::int64_t count, std::int64_t size, const Ahead& ahead,
                        float* to) {
    for (std::int64_t group = 0; group < count; group += WIDTH) {
      ahead.fetch(group, WIDTH);
      for (std::int64_t place = 0; place < size; place += WIDTH) {
        Vec square[WIDTH];
        for (int i = 0; i < WIDTH; ++i) {
          square[i] = group + i < count ? widen(rows + (group + i) * size + place) : set(0.0f);
        }
        transpose(square);
        for (int i = 0; i < WIDTH; ++i) store(to + (place + i) * CHUNK + group, square[i]);
      }
    }
  }

  // Reads some vectors of one step of the values, from a place of the head on.
  template <class T, int VECTORS>
  static void read_values(const T* row, std::int64_t, Vec (&panel)[VECTORS]) {
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) panel[j] = widen(row + j * WIDTH);
  }

  // Packs one of the two columns of a step; nothing to do here, where a step is one column.
  template <class T>
  static void pack_half(const T*, bool, std::int64_t, float*) {}
};

// The right-hand side of a multiplication, by steps: packed values here, cache rows in Unpacked.
struct Packed {
  const float* from;
  std::int64_t row;

  template <int VECTORS>
  void take(std::int64_t step, std::int64_t place, Vec (&panel)[VECTORS]) const {
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) panel[j] = load(from + step * row + place + j * WIDTH);
  }
  Packed after(std::int64_t steps) const { return {from + steps * row, row}; }
};

template <class Dot, class T>
struct Unpacked {
  const T* from;
  std::int64_t size;
  Ahead ahead;

  template <int VECTORS>
  void take(std::int64_t step, std::int64_t place, Vec (&panel)[VECTORS]) const {
    if (place == 0) ahead.fetch(step * Dot::PAIR, Dot::PAIR);
    Dot::read_values(from + step * Dot::PAIR * size + place, size, panel);
  }
  Unpacked after(std::int64_t steps) const {
    const std::int64_t rows = steps * Dot::PAIR;
    const char* later = ahead.from == nullptr ? nullptr : ahead.from + rows * ahead.row;
    return {from + rows * size, size, {later, ahead.row}};
  }
};

template <class Values>
void pack_values(const Values& values, std::int64_t steps, std::int64_t size, float* to) {
  for (std::int64_t step = 0; step < steps; ++step, to += size) {
    std::int64_t place = 0;
    for (; place + 2 * WIDTH <= size; place += 2 * WIDTH) {
      Vec two[2];
      values.take(step, place, two);
      store(to + place, two[0]);
      store(to + place + WIDTH, two[1]);
    }
    if (place == size) continue;
    Vec one[1];
    values.take(step, place, one);
    store(to + place, one[0]);
  }
}

enum class Sums { begin, go_on };

// Multiplies rows [ROWS, steps] by a panel [steps, VECTORS]; sets or adds to [ROWS, VECTORS].
template <class Dot, int ROWS, int VECTORS, Sums SUMS, class Panel>
inline void multiply_tile(const float* a, std::int64_t a_row, const Panel& panel,
                          std::int64_t place, std::int64_t steps, float* to,
                          std::int64_t to_row) {
  Vec sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {
      const float* from = to + i * to_row + place + j * WIDTH;
      sums[i][j] = SUMS == Sums::begin ? set(0.0f) : load(from);
    }
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    Vec b[VECTORS];
    panel.take(step, place, b);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec factor = set(a[i * a_row + step]);
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) sums[i][j] = Dot::step(sums[i][j], b[j], factor);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) store(to + i * to_row + place + j * WIDTH, sums[i][j]);
  }
}

template <class Dot, int ROWS, Sums SUMS, class Panel>
void multiply_rows(const float* a, std::int64_t a_row, const Panel& panel, std::int64_t steps,
                   float* to, std::int64_t to_row, std::int64_t places) {
  std::int64_t place = 0;
  for (; place + TILE_VECTORS * WIDTH <= places; place += TILE_VECTORS * WIDTH) {
    multiply_tile<Dot, ROWS, TILE_VECTORS, SUMS>(a, a_row, panel, place, steps, to, to_row);
  }
  if (TILE_VECTORS > 2 && place + 2 * WIDTH <= places) {
    multiply_tile<Dot, ROWS, 2, SUMS>(a, a_row, panel, place, steps, to, to_row);
    place += 2 * WIDTH;
  }
  if (place < places) {
    multiply_tile<Dot, ROWS, 1, SUMS>(a, a_row, panel, place, steps, to, to_row);
  }
}

// Multiplies all rows by all places of a panel; `places` is a multiple of WIDTH.
template <class Dot, Sums SUMS, class Panel>
void multiply_all(const float* a, std::int64_t a_row, const Panel& panel, std::int64_t steps,
                  float* to, std::int64_t to_row, std::int64_t rows, std::int64_t places) {
  std::int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS) {
    multiply_rows<Dot, TILE_ROWS, SUMS>(a + i * a_row, a_row, panel, steps, to + i * to_row,
                                        to_row, places);
  }
  a += i * a_row;
  to += i * to_row;
  switch (rows - i) {
    case 5:
      return multiply_rows<Dot, 5, SUMS>(a, a_row, panel, steps, to, to_row, places);
    case 4:
      return multiply_rows<Dot, 4, SUMS>(a, a_row, panel, steps, to, to_row, places);
    case 3:
      return multiply_rows<Dot, 3, SUMS>(a, a_row, panel, steps, to, to_row, places);
    case 2:
      return multiply_rows<Dot, 2, SUMS>(a, a_row, panel, steps, to, to_row, places);
    case 1:
      return multiply_rows<Dot, 1, SUMS>(a, a_row, panel, steps, to, to_row, places);
    default:
      return;
  }
}

// Keys and values of one head in the cache of one slot.
template <class T>
struct Side {
  const T* keys;
  const T* values;
  const float* key_scales;
  const float* value_scales;
  std::int64_t size;
  const T* next;  // keys that this thread probably reads next, or null

  // Returns the rows that are read two chunks after column `at` of a block, if columns end at
  // `end`: the keys of the block, then its values, then the keys of the next block, then `next`.
  Ahead after_keys(std::int64_t block, std::int64_t at, std::int64_t end) const {
    const std::int64_t later = at + 2 * CHUNK, held = chunks_of(block, end);
    if (later < held) return ahead(keys, block * BLOCK + later);
    return later - held < held ? ahead(values, block * BLOCK + later - held)
                               : after_block(block, later - 2 * held, end);
  }
  Ahead after_values(std::int64_t block, std::int64_t at, std::int64_t end) const {
    const std::int64_t later = at + 2 * CHUNK, held = chunks_of(block, end);
    return later < held ? ahead(values, block * BLOCK + later)
                        : after_block(block, later - held, end);
  }

 private:
  // Returns the number of columns of a block, rounded up to whole chunks.
  static std::int64_t chunks_of(std::int64_t block, std::int64_t end) {
    return (smaller_of(BLOCK, end - block * BLOCK) + CHUNK - 1) / CHUNK * CHUNK;
  }
  Ahead after_block(std::int64_t block, std::int64_t at, std::int64_t end) const {
    const std::int64_t column = (block + 1) * BLOCK + at;
    return column < end ? ahead(keys, column) : ahead(next, at);
  }
  Ahead ahead(const T* from, std::int64_t column) const {
    const std::int64_t row = size * static_cast<std::int64_t>(sizeof(T));
    if (from == nullptr) return {nullptr, row};
    return {reinterpret_cast<const char*>(from) + column * row, row};
  }
};

template <class T>
Side<T> side_of(const AttendCache& cache, std::int64_t slot, std::int64_t head) {
  const std::int64_t row = (slot * cache.heads + head) * cache.columns;
  const bool scaled = cache.key_scales != nullptr;
  return {static_cast<const T*>(cache.keys) + row * cache.size,
          static_cast<const T*>(cache.values) + row * cache.size,
          scaled ? cache.key_scales + row : nullptr, scaled ? cache.value_scales + row : nullptr,
          cache.size, nullptr};
}

// The running softmax of one query vector, or the softmax of one block.
struct Share {
  float top;    // largest score, in powers of two
  float total;  // sum of the weights
};

// Rows of one slot and one key/value head. Query i belongs to row i / group.
struct Tile {
  std::int64_t rows, group, size;
  std::int64_t low[ATTEND_QUERIES], high[ATTEND_QUERIES];  // columns that each row attends to
  Share share[ATTEND_QUERIES], block_share[ATTEND_QUERIES];
  float* queries;  // [queries, size], in the format of Dot
  float* scores;   // [queries, BLOCK]
  float* mixed;    // [queries, size], result of the block
  float* out;      // [queries, size], running result
  float* panel;    // [CHUNK * size]: packed keys or values
  float* half;     // [size]: a step of values with only one column
  float* key_scales;    // [BLOCK]
  float* value_scales;  // [BLOCK]

  Tile(float* scratch, std::int64_t rows, std::int64_t group, std::int64_t size)
      : rows(rows), group(group), size(size) {
    const std::int64_t inner = ATTEND_QUERIES * size;
    queries = scratch;
    scores = queries + inner;
    mixed = scores + ATTEND_QUERIES * BLOCK;
    out = mixed + inner;
    panel = out + inner;
    half = panel + CHUNK * size;
    key_scales = half + size;
    value_scales = key_scales + BLOCK;
  }

  std::int64_t count() const { return rows * group; }
  std::int64_t end() const { return high[rows - 1]; }

  void begin() {
    for (std::int64_t i = 0; i < count(); ++i) share[i] = {NOTHING, 0.0f};
    std::memset(out, 0, static_cast<std::size_t>(count() * size) * sizeof(float));
  }
};

// The columns of one block that the rows of a tile attend to, relative to the block's first column.
struct Sight {
  std::int64_t low[ATTEND_QUERIES], high[ATTEND_QUERIES];
  std::int64_t from = BLOCK, to = 0;    // columns of any row
  std::int64_t shared_from, shared_to;  // columns of all rows, in whole steps

  Sight(const Tile& tile, std::int64_t block, int pair) {
    std::int64_t all_from = 0, all_to = BLOCK;
    for (std::int64_t row = 0; row < tile.rows; ++row) {
      low[row] = clamp(tile.low[row] - block * BLOCK, 0, BLOCK);
      high[row] = clamp(tile.high[row] - block * BLOCK, 0, BLOCK);
      all_from = larger_of(all_from, low[row]);
      all_to = smaller_of(all_to, high[row]);
      if (low[row] >= high[row]) continue;
      from = smaller_of(from, low[row]);
      to = larger_of(to, high[row]);
    }
    shared_from = (all_from + pair - 1) / pair * pair;
    shared_to = all_to / pair * pair;
    if (shared_from >= shared_to) shared_from = shared_to = BLOCK;
  }

  bool sees(std::int64_t row) const { return low[row] < high[row]; }
};

inline void copy_scales(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < CHUNK; ++i) to[i] = i < count ? from[i] : 0.0f;
}

template <class T, class Dot>
void score(const Side<T>& side, std::int64_t block, const Sight& sight, Tile& tile) {
  const std::int64_t size = side.size, queries = tile.count();
  for (std::int64_t at = sight.from / CHUNK * CHUNK; at < sight.to; at += CHUNK) {
    const std::int64_t column = block * BLOCK + at, count = smaller_of(CHUNK, sight.to - at);
    const std::int64_t places = (count + WIDTH - 1) / WIDTH * WIDTH;
    Dot::pack_keys(side.keys + column * size, count, size,
                   side.after_keys(block, at, tile.end()), tile.panel);
    multiply_all<Dot, Sums::begin>(tile.queries, size, Packed{tile.panel, CHUNK},
                                   size / Dot::PAIR, tile.scores + at, BLOCK, queries, places);
    if (side.key_scales == nullptr) continue;
    copy_scales(side.key_scales + column, count, tile.key_scales + at);
    copy_scales(side.value_scales + column, count, tile.value_scales + at);
    for (std::int64_t i = 0; i < queries; ++i) {
      float* row = tile.scores + i * BLOCK + at;
      for (std::int64_t j = 0; j < places; j += WIDTH) {
        store(row + j, multiply(load(row + j), load(tile.key_scales + at + j)));
      }
    }
  }
}

// Turns scores into softmax weights in place, in the format of Dot; 0 outside low..high-1.
template <class Dot>
Share weigh(float* scores, std::int64_t low, std::int64_t high, const float* scales) {
  constexpr std::int64_t TWO = 2 * WIDTH;
  const std::int64_t begin = low / TWO * TWO, end = (high + TWO - 1) / TWO * TWO;
  const auto hide = [&](std::int64_t at) {
    for (std::int64_t j = at; j < at + TWO; j += WIDTH) {
      store(scores + j, keep(load(scores + j), low - j, high - j, NOTHING));
    }
  };
  hide(begin);
  if (end - TWO > begin) hide(end - TWO);
  Vec top = load(scores + begin);
  for (std::int64_t j = begin + WIDTH; j < end; j += WIDTH) top = larger(top, load(scores + j));
  const float best = highest(top);
  Vec total = set(0.0f);
  for (std::int64_t j = begin; j < end; j += TWO) {
    Vec one = exp2_of(subtract(load(scores + j), set(best)));
    Vec two = exp2_of(subtract(load(scores + j + WIDTH), set(best)));
    total = add(total, add(one, two));
    if (scales != nullptr) {
      // The scale of a masked column may be NaN, and NaN times zero is NaN.
      one = keep(multiply(one, load(scales + j)), low - j, high - j, 0.0f);
      two = keep(multiply(two, load(scales + j + WIDTH)), low - j - WIDTH, high - j - WIDTH, 0.0f);
    }
    Dot::put_weights(scores + Dot::weight_place(j), one, two);
  }
  return {best, sum(total)};
}

// Multiplies weights by values, for the columns of a block from `at` on.
template <class T, class Dot, class Panel>
class Mixer {
 public:
  Mixer(const T* rows, const Panel& panel, std::int64_t at, Tile& tile)
      : rows_(rows), panel_(panel), at_(at), tile_(tile) {}

  // Adds columns from..to-1, whole steps, for all queries.
  void mix_all(std::int64_t from, std::int64_t to) const {
    multiply(panel_.after((from - at_) / Dot::PAIR), 0, tile_.count(), from,
             (to - from) / Dot::PAIR);
  }

  // Adds columns from..to-1 for the queries of one row; in a step that is only half inside, the
  // other column counts as zero, even if it contains NaN.
  void mix_row(std::int64_t row, std::int64_t from, std::int64_t to) const {
    if (from < to && from % Dot::PAIR != 0) mix_half(row, from++);
    if (from >= to) return;
    multiply(panel_.after((from - at_) / Dot::PAIR), row * tile_.group, tile_.group, from,
             (to - from) / Dot::PAIR);
    if (to % Dot::PAIR != 0) mix_half(row, to - 1);
  }

 private:
  void mix_half(std::int64_t row, std::int64_t column) const {
    const std::int64_t size = tile_.size;
    Dot::pack_half(rows_ + (column - at_) * size, column % 2 != 0, size, tile_.half);
    multiply(Packed{tile_.half, size}, row * tile_.group, tile_.group, column, 1);
  }

  template <class Any>
  void multiply(const Any& panel, std::int64_t query, std::int64_t queries, std::int64_t column,
                std::int64_t steps) const {
    const std::int64_t size = tile_.size;
    const float* weights = tile_.scores + query * BLOCK + column / Dot::PAIR;
    multiply_all<Dot, Sums::go_on>(weights, BLOCK, panel, steps, tile_.mixed + query * size, size,
                                   queries, size);
  }

  const T* rows_;
  const Panel& panel_;
  std::int64_t at_;
  Tile& tile_;
};

// Adds columns at..end-1: those before the shared ones row by row, the shared ones, those after.
template <class T, class Dot, class Panel>
void mix_chunk(const Mixer<T, Dot, Panel>& mixer, const Sight& sight, std::int64_t at,
               std::int64_t end, std::int64_t rows) {
  const std::int64_t from = clamp(sight.shared_from, at, end);
  const std::int64_t to = clamp(sight.shared_to, at, end);
  for (std::int64_t row = 0; row < rows; ++row) {
    mixer.mix_row(row, larger_of(at, sight.low[row]), smaller_of(from, sight.high[row]));
  }
  mixer.mix_all(from, to);
  for (std::int64_t row = 0; row < rows; ++row) {
    mixer.mix_row(row, larger_of(to, sight.low[row]), smaller_of(end, sight.high[row]));
  }
}

template <class T, class Dot>
void mix(const Side<T>& side, std::int64_t block, const Sight& sight, Tile& tile) {
  const std::int64_t size = side.size;
  std::memset(tile.mixed, 0, static_cast<std::size_t>(tile.count() * size) * sizeof(float));
  for (std::int64_t at = sight.from / CHUNK * CHUNK; at < sight.to; at += CHUNK) {
    const std::int64_t end = smaller_of(at + CHUNK, sight.to);
    const T* rows = side.values + (block * BLOCK + at) * size;
    const Ahead ahead = side.after_values(block, at, tile.end());
    if (tile.count() <= TILE_ROWS) {  // values are read once, so packing does not pay
      const Unpacked<Dot, T> panel{rows, size, ahead};
      mix_chunk(Mixer<T, Dot, Unpacked<Dot, T>>(rows, panel, at, tile), sight, at, end, tile.rows);
    } else {
      const std::int64_t steps = (end - at) / Dot::PAIR;
      pack_values(Unpacked<Dot, T>{rows, size, ahead}, steps, size, tile.panel);
      const Packed panel{tile.panel, size};
      mix_chunk(Mixer<T, Dot, Packed>(rows, panel, at, tile), sight, at, end, tile.rows);
    }
  }
}

// Folds the softmax of a block into the running softmax.
inline void fold(Share& share, float* out, const Share& block, const float* mixed,
                 std::int64_t size) {
  const Vec top = larger(set(share.top), set(block.top));
  const Vec fade = exp2_of(subtract(set(share.top), top));
  const Vec weight = exp2_of(subtract(set(block.top), top));
  share.top = first(top);
  share.total = first(fma(set(share.total), fade, multiply(set(block.total), weight)));
  for (std::int64_t i = 0; i < size; i += WIDTH) {
    store(out + i, fma(load(out + i), fade, multiply(load(mixed + i), weight)));
  }
}

inline void finish(const Share& share, const float* from, std::int64_t size, float* to) {
  for (std::int64_t i = 0; i < size; i += WIDTH) {
    store(to + i, divide(load(from + i), set(share.total)));
  }
}

// Computes one block for all queries of a tile; sets block_share and mixed.
template <class T, class Dot>
Sight attend_block(const Side<T>& side, std::int64_t block, Tile& tile) {
  const Sight sight(tile, block, Dot::PAIR);
  if (sight.from >= sight.to) return sight;
  score<T, Dot>(side, block, sight, tile);
  const float* scales = side.value_scales == nullptr ? nullptr : tile.value_scales;
  for (std::int64_t i = 0; i < tile.count(); ++i) {
    const std::int64_t row = i / tile.group;
    if (!sight.sees(row)) continue;
    tile.block_share[i] =
        weigh<Dot>(tile.scores + i * BLOCK, sight.low[row], sight.high[row], scales);
  }
  mix<T, Dot>(side, block, sight, tile);
  return sight;
}

// Rotates one head by its position; the two numbers of a pair lie half a head apart.
inline void rotate(const float* from, const float* cos, const float* sin, std::int64_t size,
                   float scale, float* __restrict to) {
  const std::int64_t half = size / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const float one = from[i], two = from[half + i];
    to[i] = (one * cos[i] - two * sin[i]) * scale;
    to[half + i] = (two * cos[i] + one * sin[i]) * scale;
  }
}

// Rotates and scales the query heads [head, head + count) of an input row.
template <class Dot>
void put_queries(const AttendInput& input, std::int64_t width, std::int64_t size, std::int64_t row,
                 std::int64_t head, std::int64_t count, float* turned, float* to) {
  // Scores are exponents of 2, so the scale is log2(e) / sqrt(size).
  const float scale = 1.44269504f / __builtin_sqrtf(static_cast<float>(size));
  const float* angles[] = {input.cos + row * size / 2, input.sin + row * size / 2};
  for (std::int64_t i = 0; i < count; ++i) {
    rotate(input.qkv + row * width + (head + i) * size, angles[0], angles[1], size, scale, turned);
    Dot::put_query(turned, size, to + i * size);
  }
}

template <class T>
void put_column(const float* from, std::int64_t size, std::int64_t column, void* to, float*) {
  narrow(from, size, static_cast<T*>(to) + column * size);
}

template <>
void put_column<std::int8_t>(const float* from, std::int64_t size, std::int64_t column, void* to,
                             float* scales) {
  scales[column] = quantise(from, size, static_cast<std::int8_t*>(to) + column * size);
}

// Writes the key and value of one input row and head to a column of the cache.
template <class T>
void append_column(const AttendInput& input, const AttendCache& cache, std::int64_t row,
                   std::int64_t head, std::int64_t slot, std::int64_t column, float* turned) {
  const std::int64_t size = cache.size, width = (input.heads + 2 * cache.heads) * size;
  const float* key = input.qkv + row * width + (input.heads + head) * size;
  const float* value = key + cache.heads * size;
  rotate(key, input.cos + row * size / 2, input.sin + row * size / 2, size, 1.0f, turned);
  const std::int64_t place = (slot * cache.heads + head) * cache.columns + column;
  put_column<T>(turned, size, place, cache.keys, cache.key_scales);
  put_column<T>(value, size, place, cache.values, cache.value_scales);
}

inline std::int64_t first_seen(std::int64_t position, std::int64_t window) {
  return window == 0 ? 0 : larger_of(position - window + 1, 0);
}

// Folds the partial results of a row and head; the part that finishes last calls this.
inline void fold_partials(const AttendStep& call, std::int64_t slot, std::int64_t head,
                          std::int64_t group, std::int64_t from, std::int64_t to, float* out) {
  const std::int64_t size = call.cache.size;
  for (std::int64_t i = 0; i < group; ++i) {
    const std::int64_t query = slot * call.input.heads + head * group + i;
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

// Computes blocks [from, to) of one slot and head and stores partial results.
template <class T>
void step_blocks(const AttendStep& call, std::int64_t slot, std::int64_t head, std::int64_t from,
                 std::int64_t to, float* scratch) {
  using Dot = typename DotOf<T>::Dot;
  const AttendInput& input = call.input;
  const std::int64_t size = call.cache.size, group = input.heads / call.cache.heads;
  const std::int64_t width = (input.heads + 2 * call.cache.heads) * size;
  Side<T> side = side_of<T>(call.cache, slot, head);
  if (slot * call.cache.heads + head + 1 < call.cache.slots * call.cache.heads) {
    side.next = side.keys + call.cache.columns * size;
  }
  for (std::int64_t start = 0; start < group; start += ATTEND_QUERIES) {
    Tile tile(scratch, 1, smaller_of(ATTEND_QUERIES, group - start), size);
    tile.high[0] = call.position[slot] + 1;
    tile.low[0] = first_seen(call.position[slot], input.window);
    const std::int64_t query = head * group + start;
    put_queries<Dot>(input, width, size, slot, query, tile.group, tile.mixed, tile.queries);
    for (std::int64_t block = from; block < to; ++block) {
      attend_block<T, Dot>(side, block, tile);
      for (std::int64_t i = 0; i < tile.group; ++i) {
        const std::int64_t row = (slot * input.heads + query + i) * call.blocks + block;
        float* partial = call.partials + row * (size + 2);
        std::memcpy(partial, tile.mixed + i * size, static_cast<std::size_t>(size) * sizeof(float));
        partial[size] = tile.block_share[i].top;
        partial[size + 1] = tile.block_share[i].total;
      }
    }
  }
}

// Computes the part (slot, run of blocks, head); the parts of a slot are consecutive. The part with
// the row's own column appends it: no other part reads that block.
template <class T>
void step_part(const AttendStep& call, std::int64_t part, float* scratch) {
  const AttendCache& cache = call.cache;
  std::int64_t slot = 0, beyond = cache.slots;
  while (beyond - slot > 1) {
    const std::int64_t middle = (slot + beyond) / 2;
    (call.first_part[middle] <= part ? slot : beyond) = middle;
  }
  const std::int64_t inner = part - call.first_part[slot], head = inner % cache.heads;
  const std::int64_t position = call.position[slot];
  const std::int64_t first = first_seen(position, call.input.window) / BLOCK;
  const std::int64_t last = position / BLOCK;
  const std::int64_t from = first + inner / cache.heads * call.run;
  const std::int64_t to = smaller_of(from + call.run, last + 1);
  if (to == last + 1) append_column<T>(call.input, cache, slot, head, slot, position, scratch);
  step_blocks<T>(call, slot, head, from, to, scratch);
  std::int32_t* pending = call.pending + slot * cache.heads + head;
  if (__atomic_sub_fetch(pending, 1, __ATOMIC_ACQ_REL) > 0) return;
  fold_partials(call, slot, head, call.input.heads / cache.heads, first, last + 1, scratch);
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
  void name(const Call& call, std::int64_t part, float* scratch) {       \
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
JAXLLAMA_ATTEND_BY_KIND(append, AttendPrompt)
JAXLLAMA_ATTEND_BY_KIND(prompt, AttendPrompt)
