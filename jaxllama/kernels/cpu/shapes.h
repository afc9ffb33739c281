// Checks that every handler makes before it reads its arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace jaxllama {

// Says whether an FFI buffer has exactly this shape.
template <class Buffer>
bool has_shape(const Buffer& buffer, std::initializer_list<int64_t> shape) {
  const auto dimensions = buffer.dimensions();
  if (dimensions.size() != shape.size()) return false;
  size_t axis = 0;
  for (const int64_t size : shape) {
    if (dimensions[axis++] != size) return false;
  }
  return true;
}

}  // namespace jaxllama
