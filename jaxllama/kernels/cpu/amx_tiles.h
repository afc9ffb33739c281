// The tile instructions of AMX.
//
// Included by matmul_amx.cc inside its unnamed namespace. Written as assembler, because the
// intrinsics of some compilers do not say which memory they read: GCC 12 removes the stores that
// fill the operand of _tile_loadconfig.
//
// A tile has up to sixteen rows of 64 bytes. Tiles 0 to 3 hold sums: up to sixteen rows of a band
// times sixteen outputs. Tiles 4 and 5 hold inputs: rows times 32 inputs. Tiles 6 and 7 hold
// weights: 16 pairs of inputs times sixteen outputs. Tiles 0, 1 and 4 belong to the first sixteen
// rows of a band, tiles 2, 3 and 5 to its other rows.

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row of each tile
  uint8_t rows[16] = {};
};

thread_local int shaped_for = 0;  // rows of the band for which this thread's tiles have shapes

// Sets the shapes of all tiles for a band of `rows` rows, 1 to 32.
inline void shape_tiles(int rows) {
  if (rows == shaped_for) return;
  const auto first = static_cast<uint8_t>(rows < 16 ? rows : 16);
  const auto other = static_cast<uint8_t>(rows < 17 ? 1 : rows - 16);
  const uint8_t of_tile[8] = {first, first, other, other, first, other, 16, 16};
  TileShapes shapes;
  for (int each = 0; each < 8; ++each) {
    shapes.rows[each] = of_tile[each];
    shapes.bytes[each] = 64;
  }
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  shaped_for = rows;
}

// Gives the tiles back: other code on this thread may use them with shapes of its own.
inline void release_tiles() {
  if (shaped_for == 0) return;
  asm volatile("tilerelease" ::: "memory");
  shaped_for = 0;
}

template <int T>
INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(T) : "memory");
}

// The same for what is not used again soon: it does not take the place of other data in the cache.
template <int T>
INLINE void stream_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(T) : "memory");
}

template <int T>
INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(T) : "memory");
}

// Adds products of bfloat16, two for each sum, to floats.
template <int SUMS, int INPUTS, int WEIGHTS>
INLINE void add_pairs() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(INPUTS), "i"(WEIGHTS));
}
