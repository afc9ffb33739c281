// A tile: a few rows of one slot and one key/value head, and the columns that they attend to.
//
// Included by attend_body.h.

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
