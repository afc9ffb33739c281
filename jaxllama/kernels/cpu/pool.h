// The threads that all kernels share: persistent workers that spin briefly and then sleep.
//
// Called by every handler. XLA's own pool is left alone: waiting inside one of its workers for
// another can deadlock when all of them wait.
#pragma once

namespace jaxllama {

// How many threads work on a kernel, the caller included.
int threads();
void set_threads(int count);

using Part = void (*)(void* context, int part);
void run_parts(int parts, Part part, void* context);

// Runs f(part) for every part in [0, parts) on the workers and the caller; returns when all are
// done. Each thread begins with its own run of neighbouring parts (the caller has the first run)
// and then helps other threads: which thread runs which part varies, and results must not depend on
// it. Every part runs with subnormal numbers flushed to zero, as in XLA's own code, on any thread.
// A call that finds the workers busy (two XLA threads in kernels at once), or that is made inside a
// part of another call, runs all parts on its own thread, so that a deadlock is impossible.
template <class F>
void parallel_for(int parts, const F& f) {
  run_parts(
      parts, [](void* context, int part) { (*static_cast<const F*>(context))(part); },
      const_cast<F*>(&f));
}

}  // namespace jaxllama
