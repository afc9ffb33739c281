// Memory a kernel needs while it runs, kept by the calling thread from call to call.
#pragma once

#include <stddef.h>

namespace jaxllama {

// At least `bytes` bytes, aligned to 64, valid until the same thread asks again. Null if there is no
// memory. A thread keeps the largest it ever asked for: a warm engine allocates nothing.
unsigned char* scratch(size_t bytes);

}  // namespace jaxllama
