// The tile instructions of AMX in plain C++; amx_tiles.h says what they do.
//
// Included by matmul_emulated.cc inside its unnamed namespace, for tests on any processor.

struct TileRegister {
  uint8_t bytes[16][64];
};

thread_local TileRegister tiles[8];
thread_local int band_rows = 0;

inline void shape_tiles(int rows) { band_rows = rows; }

inline void release_tiles() {}

template <int T>
inline int rows_of() {
  if (T == 6 || T == 7) return 16;
  const bool first = T == 0 || T == 1 || T == 4;
  return first ? (band_rows < 16 ? band_rows : 16) : (band_rows < 17 ? 1 : band_rows - 16);
}

template <int T>
inline void clear_tile() {
  __builtin_memset(tiles[T].bytes, 0, sizeof tiles[T].bytes);
}

template <int T>
inline void load_tile(const void* from, int64_t row_bytes) {
  clear_tile<T>();
  for (int row = 0; row < rows_of<T>(); ++row) {
    __builtin_memcpy(tiles[T].bytes[row], static_cast<const uint8_t*>(from) + row * row_bytes, 64);
  }
}

template <int T>
inline void stream_tile(const void* from, int64_t row_bytes) {
  load_tile<T>(from, row_bytes);
}

template <int T>
inline void store_tile(void* to, int64_t row_bytes) {
  for (int row = 0; row < rows_of<T>(); ++row) {
    __builtin_memcpy(static_cast<uint8_t*>(to) + row * row_bytes, tiles[T].bytes[row], 64);
  }
}

inline float number_at(const uint8_t* bytes) {
  uint16_t bits;
  __builtin_memcpy(&bits, bytes, sizeof bits);
  return widen_bfloat(bits);
}

// Even and odd inputs have sums of their own, which are added at the end, as in the processor.
template <int SUMS, int INPUTS, int WEIGHTS>
inline void add_pairs() {
  for (int row = 0; row < rows_of<INPUTS>(); ++row) {
    for (int output = 0; output < kHalf; ++output) {
      float sums[2] = {}, total;
      for (int k = 0; k < kBlock; ++k) {
        sums[k % 2] += number_at(tiles[INPUTS].bytes[row] + 2 * k) *
                       number_at(tiles[WEIGHTS].bytes[k / 2] + 4 * output + k % 2 * 2);
      }
      uint8_t* at = tiles[SUMS].bytes[row] + 4 * output;
      __builtin_memcpy(&total, at, sizeof total);
      total += sums[0] + sums[1];
      __builtin_memcpy(at, &total, sizeof total);
    }
  }
}
