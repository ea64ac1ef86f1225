#include "governor.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace rushlight {

namespace {

constexpr int64_t kMillisecond = 1'000'000;

// A window averages over the variation between runs. On a busy machine that is which thread has a core, in slices of
// about 3 ms (Linux, man 7 sched, and its default base_slice_ns). The first trial uses short windows.
constexpr int64_t kShortWindow = 2 * kMillisecond, kLongWindow = 30 * kMillisecond;
constexpr int kWindowRuns = 3;      // minimum number of runs that are shorter than the window
constexpr int kRounds = 4;          // windows of each in a trial
// A ratio of costs that ends a trial early, after one round of short windows or two of long ones.
constexpr double kClear = 1.3;
constexpr double kBetter = 0.97;    // the ratio of costs below which the tried number is adopted
constexpr double kHopeless = 1.5;   // a window is abandoned when it costs this factor and a time slice more
constexpr int64_t kSlice = 4 * kMillisecond;

constexpr int64_t kFirstInterval = 50 * kMillisecond, kLastInterval = 1000 * kMillisecond;
constexpr int64_t kTrialShare = 64;  // a trial may lose one part in this many of the kind's own time

constexpr int64_t kLongWait = kMillisecond / 2;  // longer than any thread with a core keeps the others waiting
constexpr int64_t kDisturbance = 1000 * kMillisecond;
constexpr int64_t kLongRun = 2 * kMillisecond;
constexpr int64_t kRecent = 20 * kMillisecond;

}  // namespace

Governor::Governor(int max_threads) : max_threads_(max_threads) { starts_.fill(max_threads); }

Governor::Kind& Governor::kind(const void* what, double work, int64_t now) {
  const int magnitude = std::clamp(std::ilogb(std::max(work, 1e-6)) + 24, 0, 63);
  const size_t slot = (std::hash<const void*>()(what) / 16 * 31 + static_cast<size_t>(magnitude)) % kinds_.size();
  Kind& kind = kinds_[slot];
  if (kind.best == 0 || kind.what != what || kind.magnitude != magnitude) {
    kind = {};
    kind.what = what;
    kind.magnitude = magnitude;
    kind.best = starts_[static_cast<size_t>(magnitude)];
    // If work of this size was faster with fewer threads, assume the same of this kind until its next trial.
    kind.known = kind.best < max_threads_;
    kind.last_trial = now;
    kind.interval = kFirstInterval;
  }
  return kind;
}

// One, two, four fewer and so on, and below half of all of them half as many: either all but a few cores are free, or
// the work is too small for most threads.
int Governor::fewer(int threads) const {
  const int taken = max_threads_ - threads, next = max_threads_ - std::max(1, 2 * taken);
  return threads == 1 ? 0 : std::max(next >= max_threads_ / 2 ? next : threads / 2, 1);
}

int Governor::more(int threads) const {
  int last = max_threads_;
  if (threads >= max_threads_) return 0;
  for (int next = max_threads_; next > threads; next = fewer(next)) last = next;
  return last;
}

int Governor::candidate(Kind& kind, int64_t now) const {
  if (kind.known && (now - kind.last_trial < kind.interval || kind.run_since < kind.run_first)) return 0;
  const int down = fewer(kind.best), up = more(kind.best);
  // Threads that hardly wait are worth their cost, and long runs lose the most in a trial. A busy neighbour takes the
  // same share of the caller's time, which the caller does not see as waiting: so even little waiting is a sign.
  const bool waits = kind.recent_waited * 32 > kind.recent_ns;
  const bool is_long = kind.recent_ns > kLongRun * kind.recent_runs;
  const bool pays = !waits && (kind.known || is_long);
  if (up != 0 && (down == 0 || pays || !kind.up)) return up;
  return down != 0 && !pays && kind.recent_runs > 0 ? down : 0;
}

int Governor::threads(const void* what, double work, int64_t now) {
  if (max_threads_ == 1) return 1;
  Kind& k = kind(what, work, now);
  if (k.other == 0 && (k.other = candidate(k, now)) != 0) {
    k.up = k.other > k.best;
    k.others_turn = false;
    k.rounds = 0;
    k.window = k.best_sum = k.other_sum = {};
  }
  return k.other != 0 && k.others_turn ? k.other : k.best;
}

int64_t Governor::length(const Kind& kind, int64_t now) const {
  return kind.known || now < disturbed_until_ ? kLongWindow : kShortWindow;
}

void Governor::ran(const Run& run) {
  if (max_threads_ == 1 || run.work <= 0) return;
  const int64_t now = run.ended, ns = run.ended - run.began;
  if (run.waited > kLongWait) disturbed_until_ = now + kDisturbance;
  Kind& k = kind(run.what, run.work, now);
  if (run.threads != (k.other != 0 && k.others_turn ? k.other : k.best)) return;
  if (run.threads == k.best) {
    k.recent_ns += ns, k.recent_waited += run.waited, ++k.recent_runs;
    if (k.recent_ns > kRecent) k.recent_ns /= 2, k.recent_waited /= 2, k.recent_runs = (k.recent_runs + 1) / 2;
  }
  k.run_since += ns;
  if (k.other == 0) return;

  const int64_t whole = length(k, now);
  // The first run of a window may wake threads that slept during the previous one.
  const bool wakes = k.window.runs++ == 0 && ns < whole / 4;
  if (!wakes) k.window.work += run.work, k.window.ns += ns;
  if (k.others_turn && k.window.work > 0) {
    const double expected = k.window.work * k.best_sum.cost();
    if (static_cast<double>(k.window.ns) > kHopeless * expected + static_cast<double>(kSlice)) {
      k.other_sum.work += k.window.work, k.other_sum.ns += k.window.ns;
      end_trial(k, false, now);
      return;
    }
  }
  if (k.window.ns < whole || (ns < whole && k.window.runs < kWindowRuns)) return;
  Tally& sum = k.others_turn ? k.other_sum : k.best_sum;
  sum.work += k.window.work, sum.ns += k.window.ns;
  k.window = {};
  k.others_turn = !k.others_turn;
  if (!k.others_turn) {
    ++k.rounds;
    judge(k, now);
  }
}

void Governor::judge(Kind& k, int64_t now) {
  const double ratio = k.other_sum.cost() / k.best_sum.cost();
  const bool enough = k.rounds > 1 || length(k, now) == kShortWindow;
  if (enough && (ratio > kClear || ratio < 1 / kClear)) {
    end_trial(k, ratio < 1, now);
  } else if (k.rounds == kRounds) {
    end_trial(k, ratio < kBetter, now);
  }
}

void Governor::end_trial(Kind& k, bool won, int64_t now) {
  if (won) {
    k.best = k.other;
    k.interval = kFirstInterval;
    k.run_first = 0;
    k.recent_ns = k.recent_waited = k.recent_runs = 0;
    starts_[static_cast<size_t>(k.magnitude)] = k.best;
  } else {
    const double lost = static_cast<double>(k.other_sum.ns) - k.other_sum.work * k.best_sum.cost();
    k.interval = std::clamp(2 * k.interval, kFirstInterval, kLastInterval);
    k.run_first = kTrialShare * static_cast<int64_t>(std::max(lost, 0.0));
  }
  k.known = true;
  k.other = 0;
  k.others_turn = false;
  k.window = {};
  k.last_trial = now;
  k.run_since = 0;
}

bool Governor::gives_up(int threads, int64_t elapsed, int64_t waited) {
  return waited > kSlice + kSlice / 2 && waited * threads > elapsed * (threads - 1);
}

}  // namespace rushlight
