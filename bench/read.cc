// The rate at which this machine reads memory: the limit of a step that reads all weights once.
//
// Every thread reads at four places in turn and prefetches at each. Compiled by ceiling.py.
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

namespace {

typedef unsigned long long Line __attribute__((vector_size(64), aligned(8)));

constexpr size_t kPlaces = 4, kLines = 4, kAhead = 16;  // lines

void read_all(const Line* from, size_t count) {
  const size_t part = count / kPlaces / kLines * kLines;
  Line seen[kLines] = {};
  for (size_t at = 0; at < part; at += kLines) {
    for (size_t place = 0; place < kPlaces; ++place) {
      const Line* here = from + place * part + at;
      for (size_t line = 0; line < kLines; ++line) {
        __builtin_prefetch(here + kAhead + line);
        seen[line] |= here[line];
      }
    }
  }
  __asm__ volatile("" ::"r"(seen) : "memory");
}

}  // namespace

// Returns the GB/s of reading `count` times 64 bytes once, with an equal part for each thread.
extern "C" double read_rate(const void* memory, size_t count, int threads) {
  const auto* lines = static_cast<const Line*>(memory);
  const size_t each = count / threads;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(read_all, lines + i * each, each);
  read_all(lines, each);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return 64.0 * static_cast<double>(each) * threads / taken.count() / 1e9;
}
