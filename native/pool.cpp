#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rushlight {

namespace {

constexpr int kSpins = 8000;  // pauses of 15 to 45 ns: what Python does between two steps takes less
constexpr int kPartsEach = 4;     // parts a thread: so that one that is held up leaves work to the others

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The value, once it is not `old` any more: at once, after a short spin, or woken by `notify`.
uint32_t await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (const uint32_t now = value.load(std::memory_order_acquire); now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
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
  // How far a stage is: the next item to take, and how many are done.
  struct alignas(64) Progress {
    std::atomic<int64_t> next = 0;
    std::atomic<int64_t> done = 0;
  };

  std::span<const Stage> stages;
  std::vector<Progress> progress;
  alignas(64) std::atomic<uint32_t> round = 0;
  alignas(64) std::atomic<uint32_t> finished = 0;  // stages that are done
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
      work();
      if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) working.notify_one();
    }
  }

  void begin(std::span<const Stage> new_stages) {
    stages = new_stages;
    if (progress.size() < stages.size()) progress = std::vector<Progress>(stages.size());
    for (size_t s = 0; s < stages.size(); ++s) {
      progress[s].next.store(0, std::memory_order_relaxed);
      progress[s].done.store(0, std::memory_order_relaxed);
    }
    finished.store(0, std::memory_order_relaxed);
    working.store(static_cast<uint32_t>(threads.size()), std::memory_order_relaxed);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }

  // Waits for the items that others have taken, not for the others: one that is held up elsewhere holds up nobody.
  void work() {
    for (uint32_t s = 0, seen = 0; s < stages.size(); ++s) {
      take_parts(s);
      while (seen <= s && s + 1 < stages.size()) seen = await_change(finished, seen);
    }
  }

  void take_parts(uint32_t s) {
    const Stage& stage = stages[s];
    const auto wanted = static_cast<int64_t>(threads.size() + 1) * kPartsEach;
    const int64_t part = std::max(stage.least, (stage.n + wanted - 1) / wanted);
    for (;;) {
      const int64_t begin = progress[s].next.fetch_add(part, std::memory_order_relaxed);
      if (begin >= stage.n) return;
      const int64_t end = std::min(begin + part, stage.n);
      stage.call(stage.context, begin, end);
      if (progress[s].done.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == stage.n) {
        finished.store(s + 1, std::memory_order_release);
        finished.notify_all();
      }
    }
  }
};

Pool::~Pool() {
  if (crew_ != nullptr && forks_ == forks.load()) delete crew_;
}

void Pool::run(std::span<const Stage> stages) {
  count_forks();
  if (forks_ != forks.load()) {
    // A child of the process that used the pool: the workers are not here, and another thread may have held the lock
    // when it was copied. The thread that forked is the only one, so nobody else is at this.
    forks_ = forks.load();
    crew_ = nullptr;
    new (&busy_) std::mutex;
  }
  const std::unique_lock lock(busy_, std::try_to_lock);
  if (!lock || n_threads_ == 1) {
    for (const Stage& stage : stages) stage.call(stage.context, 0, stage.n);
    return;
  }
  if (crew_ == nullptr) crew_ = new Crew(n_threads_ - 1);
  Crew& crew = *crew_;
  crew.begin(stages);
  crew.work();
  for (uint32_t left; (left = crew.working.load(std::memory_order_acquire)) != 0;) await_change(crew.working, left);
}

}  // namespace rushlight
