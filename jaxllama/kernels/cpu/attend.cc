// Distributes the parts of an attention call over the threads.
#include "attend.h"

#include <cstdlib>
#include <cstring>

#include "isa.h"
#include "pool.h"
#include "scratch.h"

namespace jaxllama {
namespace {

const AttendBody& body_in_use() {
#if JAXLLAMA_AMX
  if (isa() == Isa::amx) return amx::attend_body;
#endif
  return JAXLLAMA_PICK(attend_body);
}

// Scratch memory of one thread for a part; `Tile` in attend_body.h divides it.
float* room(std::int64_t size) {
  const std::int64_t floats =
      ATTEND_QUERIES * (3 * size + ATTEND_BLOCK) + (ATTEND_CHUNK + 1) * size + 2 * ATTEND_BLOCK;
  unsigned char* bytes = scratch(static_cast<std::size_t>(floats) * sizeof(float), Scratch::call);
  if (bytes == nullptr) std::abort();  // out of memory; a worker cannot report an error
  return reinterpret_cast<float*>(bytes);
}

// Returns the rows of a tile: as many as `most` queries allow, a divisor of the block; fewer if there
// would otherwise be too few tiles for all threads.
std::int64_t tile_rows(const AttendPrompt& call, std::int64_t most) {
  const std::int64_t group = call.input.heads / call.cache.heads;
  std::int64_t rows = 1;
  while (2 * rows * group <= most) rows *= 2;
  const std::int64_t wanted = threads() == 1 ? 1 : 4 * threads();
  while (rows > 1 && call.count * call.cache.heads < wanted * rows) rows /= 2;
  return rows;
}

std::int64_t seen_blocks(const AttendStep& call, std::int64_t row) {
  const std::int64_t position = call.position[row], window = call.input.window;
  const std::int64_t low = window == 0 || position < window ? 0 : position - window + 1;
  return position / ATTEND_BLOCK - low / ATTEND_BLOCK + 1;
}

// Returns the blocks per part: long runs read the cache in order, but every thread needs a run.
std::int64_t run_length(std::int64_t blocks) {
  constexpr std::int64_t most = 8;
  const std::int64_t fair = blocks / (8 * static_cast<std::int64_t>(threads()));
  return fair < 1 ? 1 : fair > most ? most : fair;
}

std::size_t row_bytes(const AttendInput& input, const AttendCache& cache) {
  return static_cast<std::size_t>(input.heads * cache.size) * sizeof(float);
}

}  // namespace

void attend_step(AttendStep call) {
  const AttendCache& cache = call.cache;
  const AttendBody& body = body_in_use();
  std::int64_t blocks = 0;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    if (call.active[row]) blocks += seen_blocks(call, row) * cache.heads;
  }
  call.run = run_length(blocks);
  std::int64_t parts = 0;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    call.first_part[row] = static_cast<std::int32_t>(parts);
    if (!call.active[row]) {
      float* out = call.input.out + row * call.input.heads * cache.size;
      std::memset(out, 0, row_bytes(call.input, cache));
      continue;
    }
    const std::int64_t runs = (seen_blocks(call, row) + call.run - 1) / call.run;
    for (std::int64_t head = 0; head < cache.heads; ++head) {
      call.pending[row * cache.heads + head] = static_cast<std::int32_t>(runs);
    }
    parts += runs * cache.heads;
  }
  call.first_part[call.rows] = static_cast<std::int32_t>(parts);
  if (call.rows > cache.slots) {  // a token attends to those before it in the same call
    parallel_for(static_cast<int>(call.rows), [&](int row) {
      if (call.active[row]) body.append_row(call, row, room(cache.size));
    });
  }
  parallel_for(static_cast<int>(parts),
               [&](int part) { body.step(call, part, room(cache.size)); });
}

void attend_prompt(AttendPrompt call) {
  const AttendCache& cache = call.cache;
  const AttendBody& body = body_in_use();
  if (call.count == 0) return;
  const auto appends = static_cast<int>((call.count + ATTEND_APPEND - 1) / ATTEND_APPEND);
  parallel_for(appends, [&](int part) { body.append(call, part, room(cache.size)); });
  call.tile = tile_rows(call, body.queries);
  const std::int64_t first = call.start / call.tile;
  const std::int64_t last = (call.start + call.count - 1) / call.tile;
  const auto parts = static_cast<int>((last - first + 1) * cache.heads);
  parallel_for(parts, [&](int part) { body.prompt(call, part, room(cache.size)); });
}

}  // namespace jaxllama
