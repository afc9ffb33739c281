// Scratch memory of a kernel; each thread keeps its memory from call to call.
#pragma once

#include <stddef.h>

namespace jaxllama {

// A thread has one buffer of each: the memory of a call, and the unpacked weights of its part.
enum class Scratch { call, panel };

// Returns at least `bytes` bytes, aligned to 64, valid until the next call for the same buffer on
// the same thread, or null if there is no memory. A thread keeps its largest buffer: a warm engine
// allocates nothing.
unsigned char* scratch(size_t bytes, Scratch which);

}  // namespace jaxllama
