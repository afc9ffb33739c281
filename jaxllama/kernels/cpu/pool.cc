#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#if JAXLLAMA_X86
#include <xmmintrin.h>
#endif

#include "library.h"

namespace jaxllama {
namespace {

// Long enough to bridge the gap between two kernels of one decode step, short enough that an idle
// engine does not burn a core.
constexpr std::chrono::microseconds kSpin(1000);
constexpr int kPausesPerLook = 16;  // between two readings of the clock
constexpr int kLooksPerYield = 256;
constexpr int kMostThreads = 256;

void pause() {
#if JAXLLAMA_X86
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Flushes subnormal numbers to zero during its lifetime. Some threads of XLA flush them and some do
// not; without this class a result could depend on the thread.
class FlushSubnormals {
 public:
#if JAXLLAMA_X86
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kToZero | kFromZero); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kToZero = 0x8000, kFromZero = 0x0040;
  unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" ::"r"(before_ | kFlush));
  }
  ~FlushSubnormals() { __asm__ volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  static constexpr unsigned long kFlush = 1ul << 24;
  unsigned long before_;
#endif
};

int available_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

// True while this thread runs parts of any call.
thread_local bool inside_part = false;

class Pool {
 public:
  Pool() : count_(available_cores()) {}

  int count() const { return count_.load(std::memory_order_relaxed); }

  void resize(int count) {
    std::lock_guard<std::mutex> owner(owner_);
    stop();
    count_.store(count < 1 ? 1 : count > kMostThreads ? kMostThreads : count);
  }

  void run(int parts, Part part, void* context) {
    const FlushSubnormals flush;
    // A thread inside a part may own the lock and must not lock it again.
    if (parts < 2 || inside_part || count() == 1) return run_alone(parts, part, context);
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return run_alone(parts, part, context);
    if (workers_.empty()) start();
    post(parts, part, context);
    inside_part = true;
    take_parts(0);
    inside_part = false;
    // From here on no worker may start reading the job; wait for the workers that already do.
    open_.store(false);
    for (int looks = 1; inside_.load() != 0; ++looks) {
      pause();
      // The worker may have no processor: let the scheduler run it.
      if (looks % kLooksPerYield == 0) std::this_thread::yield();
    }
  }

 private:
  static void run_alone(int parts, Part part, void* context) {
    for (int each = 0; each < parts; ++each) part(context, each);
  }

  void start() {
    stopping_.store(false);
    for (int each = 1; each < count(); ++each) workers_.emplace_back([this, each] { work(each); });
  }

  void stop() {
    stopping_.store(true);
    ring();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  void post(int parts, Part part, void* context) {
    part_ = part;
    context_ = context;
    const int64_t threads = count();
    for (int64_t each = 0; each < threads; ++each) {
      shares_[each].next.store(static_cast<int>(each * parts / threads));
      shares_[each].end = static_cast<int>((each + 1) * parts / threads);
    }
    open_.store(true);
    ring();
  }

  // Wakes spinning and sleeping workers for a new job.
  void ring() {
    bell_.fetch_add(1);
    if (sleeping_.load() == 0) return;
    std::lock_guard<std::mutex> lock(bed_);
    wake_.notify_all();
  }

  // Runs the thread's own share first, then the rest of other shares. Equal calls thus find their
  // data in the cache of the same core.
  void take_parts(int thread) {
    const int threads = count();
    for (int each = 0; each < threads; ++each) {
      Share& share = shares_[(thread + each) % threads];
      for (int part = share.next.fetch_add(1); part < share.end; part = share.next.fetch_add(1)) {
        part_(context_, part);
      }
    }
  }

  void work(int thread) {
    const FlushSubnormals flush;
    inside_part = true;
    unsigned heard = 0;
    while (!stopping_.load()) {
      inside_.fetch_add(1);
      if (open_.load()) take_parts(thread);
      inside_.fetch_sub(1);
      heard = wait(heard);
    }
  }

  // Waits until the bell count differs from `heard`; returns the new count.
  unsigned wait(unsigned heard) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int each = 0; each < kPausesPerLook; ++each) {
        const unsigned rung = bell_.load();
        if (rung != heard) return rung;
        pause();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(bed_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return bell_.load() != heard; });
    sleeping_.fetch_sub(1);
    return bell_.load();
  }

  std::mutex owner_;  // locked by the caller whose job the workers run
  std::atomic<int> count_;
  std::vector<std::thread> workers_;

  // The parts of the job that belong to one thread, on separate cache lines.
  struct alignas(128) Share {
    std::atomic<int> next{0};
    int end = 0;
  };

  Part part_ = nullptr;
  void* context_ = nullptr;
  Share shares_[kMostThreads];
  std::atomic<bool> open_{false};  // whether workers may read the job
  std::atomic<int> inside_{0};     // workers that may be reading it

  std::atomic<unsigned> bell_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex bed_;
  std::condition_variable wake_;
};

// Never destroyed: workers may still be asleep in it when the process ends.
Pool& pool() {
  static Pool* shared = new Pool;
  return *shared;
}

}  // namespace

int threads() { return pool().count(); }
void set_threads(int count) { pool().resize(count); }
void run_parts(int parts, Part part, void* context) { pool().run(parts, part, context); }

}  // namespace jaxllama

JAXLLAMA_EXPORT int jaxllama_threads() { return jaxllama::threads(); }
JAXLLAMA_EXPORT void jaxllama_set_threads(int count) { jaxllama::set_threads(count); }
