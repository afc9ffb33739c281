// Attention of a tile to one block of columns: scores, softmax weights, the mix of the values.
//
// Included by attend_body.h. A running softmax takes in one block after the other (`fold`).

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
        store(row + j, mul(load(row + j), load(tile.key_scales + at + j)));
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
    Vec one = exp2_of(sub(load(scores + j), set(best)));
    Vec two = exp2_of(sub(load(scores + j + WIDTH), set(best)));
    total = add(total, add(one, two));
    if (scales != nullptr) {
      // The scale of a masked column may be NaN, and NaN times zero is NaN.
      one = keep(mul(one, load(scales + j)), low - j, high - j, 0.0f);
      two = keep(mul(two, load(scales + j + WIDTH)), low - j - WIDTH, high - j - WIDTH, 0.0f);
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

// Packs the values of `count` columns, and zeros for the rest of a chunk.
template <class Dot, class T>
void pack_chunk(const T* rows, std::int64_t count, std::int64_t size, const Ahead& ahead,
                Tile& tile) {
  const std::int64_t steps = count / Dot::PAIR;
  pack_values(Unpacked<Dot, T>{rows, size, ahead}, steps, size, tile.panel);
  float* to = tile.panel + steps * size;
  if (count % Dot::PAIR != 0) {
    Dot::pack_half(rows + (count - 1) * size, false, size, to);
    to += size;
  }
  for (; to < tile.panel + CHUNK / Dot::PAIR * size; to += WIDTH) store(to, set(0.0f));
}

// Replaces values that are NaN or infinite by zero: rows that do not attend to them multiply them
// too. Returns a bit for each column of the chunk that had one.
template <class Dot>
std::uint64_t take_unsound(float* panel, std::int64_t size) {
  std::uint64_t found = 0;
  for (std::int64_t step = 0; step < CHUNK / Dot::PAIR; ++step) {
    float* row = panel + step * size;
    if (Dot::is_sound(row, size)) continue;
    for (std::int64_t i = 0; i < Dot::PAIR * size; ++i) {
      constexpr std::uint16_t infinite = 0x7f80;
      std::uint16_t bits;
      char* at = reinterpret_cast<char*>(row) + i * sizeof bits;
      std::memcpy(&bits, at, sizeof bits);
      if ((bits & infinite) != infinite) continue;
      found |= std::uint64_t{1} << (step * Dot::PAIR + i % Dot::PAIR);
      std::memset(at, 0, sizeof bits);
    }
  }
  return found;
}

// Makes the result of every row NaN that attends to one of the columns of a chunk whose bit is set.
inline void spoil_rows(std::uint64_t columns, std::int64_t at, const Sight& sight, Tile& tile) {
  for (std::int64_t i = 0; i < tile.count(); ++i) {
    const std::int64_t row = i / tile.group;
    const std::int64_t low = clamp(sight.low[row] - at, 0, CHUNK);
    const std::int64_t high = clamp(sight.high[row] - at, 0, CHUNK);
    bool is_spoilt = false;
    for (std::int64_t column = low; column < high; ++column) is_spoilt |= columns >> column & 1;
    if (!is_spoilt) continue;
    for (std::int64_t j = 0; j < tile.size; j += WIDTH) {
      store(tile.mixed + i * tile.size + j, set(__builtin_nanf("")));
    }
  }
}

// Sets the weights of a row that lie outside low..high-1, but in chunks of the block, to zero.
template <class Dot>
void clear_outside(const Sight& sight, std::int64_t low, std::int64_t high, float* scores) {
  constexpr std::int64_t TWO = 2 * WIDTH;  // `weigh` cleared the rest of two vectors
  const std::int64_t from = sight.from / CHUNK * CHUNK, begin = low / TWO * TWO;
  const std::int64_t end = (high + TWO - 1) / TWO * TWO, to = (sight.to + CHUNK - 1) / CHUNK * CHUNK;
  for (std::int64_t j = from; j < begin; j += TWO) store(scores + Dot::weight_place(j), set(0.0f));
  for (std::int64_t j = end; j < to; j += TWO) store(scores + Dot::weight_place(j), set(0.0f));
}

template <class T, class Dot>
void mix(const Side<T>& side, std::int64_t block, const Sight& sight, Tile& tile) {
  const std::int64_t size = side.size;
  std::memset(tile.mixed, 0, static_cast<std::size_t>(tile.count() * size) * sizeof(float));
  for (std::int64_t at = sight.from / CHUNK * CHUNK; at < sight.to; at += CHUNK) {
    const std::int64_t end = smaller_of(at + CHUNK, sight.to);
    const T* rows = side.values + (block * BLOCK + at) * size;
    const Ahead ahead = side.after_values(block, at, tile.end());
    if constexpr (Dot::TILES) {
      pack_chunk<Dot>(rows, end - at, size, ahead, tile);
      const bool shared = sight.shared_from <= at && end <= sight.shared_to;
      const std::uint64_t unsound = shared ? 0 : take_unsound<Dot>(tile.panel, size);
      multiply_all<Dot, Sums::go_on>(tile.scores + at / Dot::PAIR, BLOCK, Packed{tile.panel, size},
                                     CHUNK / Dot::PAIR, tile.mixed, size, tile.count(), size);
      if (unsound != 0) spoil_rows(unsound, at, sight, tile);
    } else if (tile.count() <= TILE_ROWS) {  // values are read once, so packing does not pay
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
  const Vec fade = exp2_of(sub(set(share.top), top));
  const Vec weight = exp2_of(sub(set(block.top), top));
  share.top = first(top);
  share.total = first(fma(set(share.total), fade, mul(set(block.total), weight)));
  for (std::int64_t i = 0; i < size; i += WIDTH) {
    store(out + i, fma(load(out + i), fade, mul(load(mixed + i), weight)));
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
    if constexpr (Dot::TILES) {
      clear_outside<Dot>(sight, sight.low[row], sight.high[row], tile.scores + i * BLOCK);
    }
  }
  mix<T, Dot>(side, block, sight, tile);
  return sight;
}
