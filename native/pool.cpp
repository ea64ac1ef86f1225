#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rushlight {

namespace {

constexpr int kSpins = 8000;   // pauses of 15 to 45 ns: longer than Python takes between two steps
constexpr int kInstant = 64;   // pauses after which a wait is timed: reading the clock costs more than a shorter wait
constexpr int kPartsEach = 4;  // parts of a thread's share, so that others can take work from a delayed thread

// Bytes of the next weights that a waiting thread fetches at most: half of a small second-level cache.
constexpr int64_t kFetchedBytes = int64_t{256} << 10;
constexpr int64_t kFetchedAtOnce = 256;  // between two looks at what it waits for

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Returns the value once it differs from `old`: immediately, after a short spin, or woken by `notify`. Adds the time to
// `waited`, unless it was negligible. While it spins it calls use_wait(), which returns false if there is nothing to do.
template <class UseWait>
uint32_t await_change(const std::atomic<uint32_t>& value, uint32_t old, int64_t& waited, UseWait&& use_wait) {
  int64_t since = 0;
  uint32_t now = old;
  for (int i = 0; i < kSpins; ++i) {
    if ((now = value.load(std::memory_order_acquire)) != old) break;
    if (i == kInstant) since = now_ns();
    if (!use_wait()) pause();
  }
  if (now == old) {
    value.wait(old, std::memory_order_acquire);
    now = value.load(std::memory_order_acquire);
  }
  if (since != 0) waited += now_ns() - since;
  return now;
}

uint32_t await_change(const std::atomic<uint32_t>& value, uint32_t old, int64_t& waited) {
  return await_change(value, old, waited, [] { return false; });
}

std::atomic<uint64_t> forks = 0;

void count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  static_cast<void>(registered);
}

}  // namespace

// The worker threads and their shared state. A separate object because a forked child cannot join or destroy threads
// that it does not have: it abandons this object and makes a new one.
struct Pool::Workers {
  struct alignas(64) Count {
    std::atomic<int64_t> items = 0;
  };

  // The state of a worker: called, at work, and idle again. A worker that has not begun when all work is done, because
  // another program uses its core, is reset to idle.
  enum : uint32_t { kIdle, kCalled, kAtWork, kDismissed };
  struct alignas(64) Worker {
    std::atomic<uint32_t> state = kIdle;
  };

  std::vector<Worker> workers;  // number 0, the caller, is unused
  int64_t n_threads = 0;        // of this call, including the caller
  std::span<const Stage> stages;
  std::vector<Count> done;   // of each stage
  std::vector<Count> taken;  // of each thread's share of each stage
  alignas(64) std::atomic<uint32_t> finished = 0;  // completed stages
  alignas(64) std::atomic<bool> abandoned = false;  // the caller does the remaining work
  std::atomic<int> callers_core = -1;
  std::vector<std::thread> threads;

  // Starts as many threads as the limits on processes and memory allow.
  explicit Workers(int max_threads) : workers(static_cast<size_t>(max_threads)) {
    threads.reserve(workers.size());
    try {
      for (size_t i = 1; i < workers.size(); ++i) threads.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error&) {
    }
  }

  ~Workers() {
    for (Worker& worker : workers) {
      worker.state.store(kDismissed, std::memory_order_release);
      worker.state.notify_all();
    }
    for (std::thread& thread : threads) thread.join();
  }

  void serve(size_t self) {
    std::atomic<uint32_t>& state = workers[self].state;
    int64_t waited = 0;
    for (;;) {
      if (await_change(state, kIdle, waited) == kDismissed) return;
      uint32_t called = kCalled;  // unless the call has ended
      if (!state.compare_exchange_strong(called, kAtWork, std::memory_order_acq_rel)) continue;
      work(static_cast<int>(self), waited, [] {});
      state.store(kIdle, std::memory_order_release);
      state.notify_all();
    }
  }

  void begin(std::span<const Stage> new_stages, int new_threads) {
    stages = new_stages;
    n_threads = new_threads;
    const size_t n_shares = stages.size() * static_cast<size_t>(n_threads);
    if (done.size() < stages.size()) done = std::vector<Count>(stages.size());
    if (taken.size() < n_shares) taken = std::vector<Count>(n_shares);
    for (size_t s = 0; s < stages.size(); ++s) done[s].items.store(0, std::memory_order_relaxed);
    for (size_t i = 0; i < n_shares; ++i) taken[i].items.store(0, std::memory_order_relaxed);
    finished.store(0, std::memory_order_relaxed);
    abandoned.store(false, std::memory_order_relaxed);
    callers_core.store(this_core(), std::memory_order_relaxed);
    for (size_t i = 1; i < static_cast<size_t>(n_threads); ++i) {
      workers[i].state.store(kCalled, std::memory_order_release);
      workers[i].state.notify_all();
    }
  }

  // Returns when no worker is busy with this call.
  void end(int64_t& waited) {
    for (size_t i = 1; i < static_cast<size_t>(n_threads); ++i) {
      uint32_t state = kCalled;
      if (workers[i].state.compare_exchange_strong(state, kIdle, std::memory_order_acq_rel)) continue;
      while (state == kAtWork) state = await_change(workers[i].state, kAtWork, waited);
    }
  }

  // Waits for items that other threads have taken, not for the threads: a delayed thread without an item delays nobody.
  // Calls `between` after a wait.
  template <class Between>
  void work(int self, int64_t& waited, Between&& between) {
    Fetch fetch;
    for (uint32_t s = 0, seen = 0; s < stages.size(); ++s) {
      leave_callers_core(self);
      take_parts(s, self);
      while (seen <= s && s + 1 < stages.size()) {
        seen = await_change(finished, seen, waited, [&] { return fetch_weights(fetch, s, self); });
        between();
      }
      if (self != 0 && abandoned.load(std::memory_order_relaxed)) return;
    }
  }

  // What a thread has fetched of the weights of a stage.
  struct Fetch {
    size_t stage = 0;
    int64_t item = 0;
    size_t from = 0;  // in the item's weights
    int64_t left = 0;
  };

  // Fetches a little more of the weights that the thread will read first after stage s. False if it has enough of them.
  bool fetch_weights(Fetch& fetch, uint32_t s, int self) const {
    if (fetch.stage <= s) {
      fetch = {s + size_t{1}, 0, 0, 0};
      while (fetch.stage < stages.size() && stages[fetch.stage].weights == nullptr) ++fetch.stage;
      if (fetch.stage < stages.size()) {
        fetch.item = share_of(stages[fetch.stage], self).begin;
        fetch.left = kFetchedBytes;
      }
    }
    if (fetch.left <= 0) return false;
    const Stage& stage = stages[fetch.stage];
    const std::span<const uint8_t> weights = stage.weights(stage.context, fetch.item);
    const uint8_t* end = weights.data() + std::min(fetch.from + kFetchedAtOnce, weights.size());
    for (const uint8_t* line = weights.data() + fetch.from; line < end; line += 64) __builtin_prefetch(line, 0, 2);
    fetch.from += kFetchedAtOnce, fetch.left -= kFetchedAtOnce;
    if (fetch.from >= weights.size()) {
      fetch.from = 0;
      if (++fetch.item >= share_of(stage, self).end) fetch.left = 0;
    }
    return true;
  }

  // A worker that shares the caller's core moves to another.
  void leave_callers_core(int self) {
    const int core = this_core(), callers = callers_core.load(std::memory_order_relaxed);
    if (self == 0) {
      if (core != callers) callers_core.store(core, std::memory_order_relaxed);
    } else if (core >= 0 && core == callers) {
      leave_core(core);
    }
  }

  // A part of a stage's items for each thread, unless there are too few.
  struct Share {
    int64_t begin, end;
  };
  int64_t n_shares_of(const Stage& stage) const {
    return std::clamp<int64_t>(stage.n / stage.min_items, 1, n_threads);
  }
  Share share_of(const Stage& stage, int64_t i) const {
    const int64_t n_shares = n_shares_of(stage);
    return {stage.n * (i % n_shares) / n_shares, stage.n * (i % n_shares + 1) / n_shares};
  }

  // The thread's own share of the stage first, in order, so that it reads contiguous memory; then what is left of
  // others'.
  void take_parts(uint32_t s, int self) {
    const Stage& stage = stages[s];
    const int64_t n_shares = n_shares_of(stage);
    const int64_t wanted = n_shares * kPartsEach;
    const int64_t part = std::max(stage.min_items, (stage.n + wanted - 1) / wanted);
    for (int64_t i = 0; i < n_shares; ++i) {
      const int64_t share = (self + i) % n_shares;
      const auto [first, last] = share_of(stage, share);
      std::atomic<int64_t>& items = taken[static_cast<size_t>(s * n_threads + share)].items;
      while (self == 0 || !abandoned.load(std::memory_order_relaxed)) {
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

namespace {

void run_inline(std::span<const Stage> stages) {
  for (const Stage& stage : stages) stage.call(stage.context, 0, stage.n);
}

}  // namespace

Pool::~Pool() {
  if (workers_ != nullptr && forks_ == forks.load()) delete workers_;
}

void Pool::run(std::span<const Stage> stages) {
  count_forks();
  if (forks_ != forks.load()) {
    // In a forked child: there are no workers, and another thread may have held the lock during the fork. The forking
    // thread is the only one here, so resetting is safe.
    forks_ = forks.load();
    workers_ = nullptr;
    governor_ = Governor(n_threads_);
    new (&busy_) std::mutex;
  }
  const std::unique_lock lock(busy_, std::try_to_lock);
  if (!lock || n_threads_ == 1) {
    run_inline(stages);
    return;
  }
  Governor::Run run = {};
  run.what = stages.size() == 1 ? reinterpret_cast<const void*>(stages[0].call) : nullptr;
  run.threads = n_threads_;
  if (adapts_) {
    for (const Stage& stage : stages) run.work += static_cast<double>(stage.n) * stage.work;
    run.began = now_ns();
    run.threads = governor_.threads(run.what, run.work, run.began);
  }
  if (run.threads == 1) {
    run_inline(stages);
  } else {
    if (workers_ == nullptr) workers_ = new Workers(n_threads_);
    Workers& workers = *workers_;
    run.threads = std::min(run.threads, static_cast<int>(workers.threads.size()) + 1);
    workers.begin(stages, run.threads);
    workers.work(0, run.waited, [&] {
      if (adapts_ && run.waited > 0 && Governor::gives_up(run.threads, now_ns() - run.began, run.waited)) {
        workers.abandoned.store(true, std::memory_order_relaxed);
      }
    });
    workers.end(run.waited);
  }
  if (adapts_) {
    run.ended = now_ns();
    governor_.ran(run);
  }
}

}  // namespace rushlight
