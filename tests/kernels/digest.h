// The digest of what a driver has computed: two machines that print the same have the same bits.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

class Digest {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t each = 0; each < values.size() * sizeof(T); ++each) {
      state_ = (state_ ^ bytes[each]) * 1099511628211u;  // FNV-1a
    }
  }
  void print(const char* isa) const {
    std::printf("%s is sound, bits %016llx\n", isa, static_cast<unsigned long long>(state_));
  }

 private:
  uint64_t state_ = 14695981039346656037u;
};
