// Attention over the KV cache: the arguments of a call, and the functions that compute its parts.
//
// The handlers in attend_ffi.cc check and fill a call, attend.cc distributes its parts over the
// threads, and one AttendBody per instruction set (attend_body.h) does the arithmetic. Nothing here
// depends on XLA.
//
// Bit rule. The columns a row sees are cut into blocks of ATTEND_BLOCK at fixed places of a cache.
// The result of a block depends on the row's own query and columns only, and blocks are folded
// together from the first to the last. So a row has the same bits alone or with other rows, as one
// decode step or inside a prompt, on any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jaxllama {

constexpr int ATTEND_BLOCK = 256;   // columns under one softmax before folding
constexpr int ATTEND_QUERIES = 128;  // most query vectors of one tile
constexpr int ATTEND_CHUNK = 64;    // columns packed at a time: they stay in the L1 cache
constexpr int ATTEND_APPEND = 16;   // prompt rows appended by one part

enum class CacheKind { bf16, f16, f32, int8 };

// Keys and values [slots, heads, columns, size]; scales [slots, heads, columns] for int8 only.
struct AttendCache {
  CacheKind kind;
  void* keys;
  void* values;
  float* key_scales;
  float* value_scales;
  std::int64_t slots, heads, columns, size;
};

// Projections: one row is [heads + 2 * kv heads, size], not yet rotated.
struct AttendInput {
  const float* qkv;
  const float* cos;
  const float* sin;
  std::int64_t heads;   // of queries
  std::int64_t window;  // columns a row may attend to, its own included; 0 means all
  float* out;           // [rows, heads, size]
};

// A decode step: one token for every slot, or several consecutive ones. Row r is a token of slot
// r % slots; the first tokens of all slots come first, then the next ones.
struct AttendStep {
  AttendInput input;
  AttendCache cache;
  std::int64_t rows;             // a multiple of the slots
  const std::int32_t* position;  // [rows]
  const bool* active;            // [rows]
  float* partials;               // [rows, heads, blocks, size + 2]
  std::int64_t blocks;           // of a full row
  std::int32_t* first_part;      // [rows + 1]: the parts of row r begin here
  std::int32_t* pending;         // [rows, kv heads]: parts not finished yet
  std::int64_t run;              // blocks that one part computes
};

// A prompt: `count` tokens of one slot, from column `start` on.
struct AttendPrompt {
  AttendInput input;
  AttendCache cache;
  std::int64_t slot, start, count;
  std::int64_t tile;  // rows of one tile, a power of two
};

// The functions of one instruction set that compute one part; `scratch` belongs to the thread.
struct AttendBody {
  void (*step)(const AttendStep&, std::int64_t part, float* scratch);
  void (*append_row)(const AttendStep&, std::int64_t row, float* scratch);
  void (*append)(const AttendPrompt&, std::int64_t part, float* scratch);
  void (*prompt)(const AttendPrompt&, std::int64_t part, float* scratch);
  std::int64_t queries;  // of one tile of a prompt, at most; more share the packing of the keys
};

namespace portable {
extern const AttendBody attend_body;
}
namespace avx2 {
extern const AttendBody attend_body;
}
namespace avx512 {
extern const AttendBody attend_body;
}
namespace amx {
extern const AttendBody attend_body;
}

// Run all parts of a call. The caller fills in every field except `run` and `tile`; the arrays
// `first_part` and `pending` need no initial values.
void attend_step(AttendStep call);
void attend_prompt(AttendPrompt call);

}  // namespace jaxllama
