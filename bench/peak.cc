// The arithmetic rate of this processor: the limit that kernels.py compares its figures with.
//
// Twelve independent accumulators in registers, without memory access. Compiled by ceiling.py.
#include <immintrin.h>

#include <chrono>
#include <thread>
#include <vector>

namespace {

constexpr int kChains = 12;
constexpr long kRounds = 2000000;

__attribute__((target("avx512f,avx512vnni"))) void bytes() {
  __m512i sums[kChains] = {}, w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" : "+v"(sums[i]));  // not all the same
  for (long each = 0; each < kRounds; ++each) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], w, x);
    __asm__ volatile("" : "+v"(w), "+v"(x));
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" ::"v"(sums[i]));
}

__attribute__((target("avx512f,avx512bf16"))) void pairs() {
  __m512 sums[kChains] = {};
  __m512bh w = (__m512bh)_mm512_set1_epi32(0x3f803f80), x = w;
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" : "+v"(sums[i]));  // not all the same
  for (long each = 0; each < kRounds; ++each) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], w, x);
    __asm__ volatile("" : "+v"(w), "+v"(x));
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" ::"v"(sums[i]));
}

__attribute__((target("avx512f"))) void floats() {
  __m512 sums[kChains] = {}, w = _mm512_set1_ps(1.0f), x = w;
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" : "+v"(sums[i]));  // not all the same
  for (long each = 0; each < kRounds; ++each) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(sums[i], w, x);
    __asm__ volatile("" : "+v"(w), "+v"(x));
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" ::"v"(sums[i]));
}

}  // namespace

// Returns billions of operations a second (a multiplication and an addition count as two) on bytes
// (kind 0), pairs of bfloat16 (1) or float32 (2); 0 where the processor lacks the instruction.
extern "C" double peak(int kind, int threads) {
  __builtin_cpu_init();
  const bool can = kind == 0   ? __builtin_cpu_supports("avx512vnni")
                   : kind == 1 ? __builtin_cpu_supports("avx512bf16")
                               : __builtin_cpu_supports("avx512f");
  if (!can) return 0.0;
  void (*const work)() = kind == 0 ? bytes : kind == 1 ? pairs : floats;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int each = 1; each < threads; ++each) others.emplace_back(work);
  work();
  for (std::thread& each : others) each.join();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  const int lanes = kind == 0 ? 64 : kind == 1 ? 32 : 16;
  return 2.0 * lanes * kChains * kRounds * threads / taken.count() / 1e9;
}
