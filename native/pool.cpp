#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rushlight {

namespace {

constexpr int kSpins = 2000;      // pauses of about 20 ns
constexpr int kPartsEach = 4;     // parts a thread: so that one that is held up leaves work to the others

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when `value` is not `old` any more: at once, after a short spin, or woken by `notify`.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

std::atomic<uint64_t> forks = 0;

void count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  static_cast<void>(registered);
}

}  // namespace

// The workers and what they are told. It is a thing of its own because a forked child cannot join or destroy threads
// that it does not have: there the crew is left where it is, and a new one made.
struct Pool::Crew {
  Task task = {};
  int64_t n = 0;
  int64_t part = 0;
  alignas(64) std::atomic<uint32_t> round = 0;
  alignas(64) std::atomic<int64_t> next = 0;
  alignas(64) std::atomic<uint32_t> working = 0;
  std::atomic<bool> dismissed = false;
  std::vector<std::thread> threads;

  explicit Crew(int n_workers) {
    for (int i = 0; i < n_workers; ++i) threads.emplace_back([this] { serve(); });
  }

  ~Crew() {
    dismissed.store(true, std::memory_order_relaxed);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void serve() {
    for (uint32_t seen = 0;; ++seen) {
      await_change(round, seen);
      if (dismissed.load(std::memory_order_relaxed)) return;
      take_parts();
      if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) working.notify_one();
    }
  }

  void take_parts() {
    for (;;) {
      const int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
      if (begin >= n) return;
      task.call(task.context, begin, std::min(begin + part, n));
    }
  }
};

Pool::~Pool() {
  if (crew_ != nullptr && forks_ == forks.load()) delete crew_;
}

void Pool::run(const Task& task, int64_t n, int64_t least) {
  count_forks();
  if (forks_ != forks.load()) {
    // A child of the process that used the pool: the workers are not here, and another thread may have held the lock
    // when it was copied. The thread that forked is the only one, so nobody else is at this.
    forks_ = forks.load();
    crew_ = nullptr;
    new (&busy_) std::mutex;
  }
  const std::unique_lock lock(busy_, std::try_to_lock);
  if (!lock) {
    task.call(task.context, 0, n);
    return;
  }
  if (crew_ == nullptr) crew_ = new Crew(n_threads_ - 1);
  Crew& crew = *crew_;
  crew.task = task;
  crew.n = n;
  crew.part = std::max(least, (n + n_threads_ * kPartsEach - 1) / (n_threads_ * kPartsEach));
  crew.next.store(0, std::memory_order_relaxed);
  crew.working.store(static_cast<uint32_t>(n_threads_ - 1), std::memory_order_relaxed);
  crew.round.fetch_add(1, std::memory_order_release);
  crew.round.notify_all();
  crew.take_parts();
  for (uint32_t left; (left = crew.working.load(std::memory_order_acquire)) != 0;) await_change(crew.working, left);
}

}  // namespace rushlight
