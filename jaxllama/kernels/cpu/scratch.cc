#include "scratch.h"

#include <cstdlib>

namespace jaxllama {
namespace {

constexpr size_t kAlignment = 64;

struct Room {
  unsigned char* bytes = nullptr;
  size_t size = 0;
  ~Room() { std::free(bytes); }
};

}  // namespace

unsigned char* scratch(size_t bytes, Scratch which) {
  thread_local Room rooms[2];
  Room& room = rooms[static_cast<int>(which)];
  if (room.size < bytes) {
    std::free(room.bytes);
    room.size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    room.bytes = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, room.size));
    if (room.bytes == nullptr) room.size = 0;
  }
  return room.bytes;
}

}  // namespace jaxllama
