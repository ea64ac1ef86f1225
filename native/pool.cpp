#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <new>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rushlight {

namespace {

constexpr int kSpins = 8000;   // pauses of 15 to 45 ns: what Python does between two steps takes less
constexpr int kPartsEach = 4;  // parts of a thread's share: so that one that is held up leaves work to the others

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
  struct alignas(64) Count {
    std::atomic<int64_t> items = 0;
  };

  int64_t n_threads = 1;  // with the one that calls, which is number 0
  std::span<const Stage> stages;
  std::vector<Count> done;   // of each stage
  std::vector<Count> taken;  // of each stage's share for each thread
  alignas(64) std::atomic<uint32_t> round = 0;
  alignas(64) std::atomic<uint32_t> finished = 0;  // stages that are done
  alignas(64) std::atomic<uint32_t> working = 0;
  std::atomic<bool> dismissed = false;
  std::vector<std::thread> threads;

  // Of as many as can be started: a limit on processes or on memory may leave no room for more.
  explicit Crew(int most) {
    threads.reserve(static_cast<size_t>(most));
    try {
      for (; n_threads < most; ++n_threads) threads.emplace_back([this, i = static_cast<int>(n_threads)] { serve(i); });
    } catch (const std::system_error&) {
    }
  }

  ~Crew() {
    dismissed.store(true, std::memory_order_relaxed);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void serve(int self) {
    for (uint32_t seen = 0;; ++seen) {
      await_change(round, seen);
      if (dismissed.load(std::memory_order_relaxed)) return;
      work(self);
      if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) working.notify_one();
    }
  }

  void begin(std::span<const Stage> new_stages) {
    stages = new_stages;
    const size_t n_shares = stages.size() * static_cast<size_t>(n_threads);
    if (taken.size() < n_shares) {
      done = std::vector<Count>(stages.size());
      taken = std::vector<Count>(n_shares);
    }
    for (size_t s = 0; s < stages.size(); ++s) done[s].items.store(0, std::memory_order_relaxed);
    for (size_t i = 0; i < n_shares; ++i) taken[i].items.store(0, std::memory_order_relaxed);
    finished.store(0, std::memory_order_relaxed);
    working.store(static_cast<uint32_t>(n_threads - 1), std::memory_order_relaxed);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }

  // Waits for the items that others have taken, not for the others: one that is held up elsewhere holds up nobody.
  void work(int self) {
    for (uint32_t s = 0, seen = 0; s < stages.size(); ++s) {
      take_parts(s, self);
      while (seen <= s && s + 1 < stages.size()) seen = await_change(finished, seen);
    }
  }

  // Its own share of the stage first, from beginning to end, so that what a thread reads lies in one piece; then what the
  // others have left of theirs.
  void take_parts(uint32_t s, int self) {
    const Stage& stage = stages[s];
    const int64_t n_shares = std::clamp<int64_t>(stage.n / stage.least, 1, n_threads);
    const int64_t wanted = n_shares * kPartsEach;
    const int64_t part = std::max(stage.least, (stage.n + wanted - 1) / wanted);
    for (int64_t i = 0; i < n_shares; ++i) {
      const int64_t share = (self + i) % n_shares, first = stage.n * share / n_shares;
      const int64_t last = stage.n * (share + 1) / n_shares;
      std::atomic<int64_t>& items = taken[static_cast<size_t>(s * n_threads + share)].items;
      for (;;) {
        const int64_t begin = first + items.fetch_add(part, std::memory_order_relaxed);
        if (begin >= last) break;
        const int64_t end = std::min(begin + part, last);
        stage.call(stage.context, begin, end);
        if (done[s].items.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == stage.n) {
          finished.store(s + 1, std::memory_order_release);
          finished.notify_all();
        }
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
  if (crew_ == nullptr) crew_ = new Crew(n_threads_);
  Crew& crew = *crew_;
  crew.begin(stages);
  crew.work(0);
  for (uint32_t left; (left = crew.working.load(std::memory_order_acquire)) != 0;) await_change(crew.working, left);
}

}  // namespace rushlight
