// The product of some rows and a panel: of queries and keys, and of weights and values.
//
// Included by attend_body.h. A panel is packed, or made of the rows of the cache while they are
// read; both go through the same loop, in register tiles of up to TILE_ROWS rows.

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
  static constexpr bool TILES = false;

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
  if constexpr (Dot::TILES) {
    return Dot::template multiply<SUMS>(a, a_row, panel, steps, to, to_row, rows, places);
  }
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
