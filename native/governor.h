// Chooses the number of threads for each kind of work from measured times.
#pragma once

#include <array>
#include <cstdint>

namespace rushlight {

// Compares numbers of threads by the throughput that each reaches on the same kind of work, in alternation. One thread
// too many costs time where work is small, and far more where another program uses its core: the others then wait for
// entire time slices until the scheduler returns it.
//
// The caller passes times in nanoseconds, so that a test can replay any machine. Plain data, which a forked child can
// reset. Not thread-safe.
class Governor {
 public:
  explicit Governor(int max_threads);

  // One measured run; its caller `waited` for other threads for part of the time.
  struct Run {
    const void* what;  // identifies the operation
    double work;       // proportional to its time on one thread
    int threads;
    int64_t began, ended, waited;
  };

  // The number of threads for a run that begins now: 1 to max_threads.
  int threads(const void* what, double work, int64_t now);
  void ran(const Run& run);

  // Whether a caller that has waited for this much of a run should finish it without other threads.
  static bool gives_up(int threads, int64_t elapsed, int64_t waited);

 private:
  struct Tally {
    double work = 0;
    int64_t ns = 0;
    int runs = 0;
    double cost() const { return static_cast<double>(ns) / work; }
  };

  // Runs of one operation that differ in work by less than a factor of two. They get `best` threads; while `other` is
  // not 0, a trial compares both in alternating windows, `rounds` of each so far.
  struct Kind {
    const void* what = nullptr;
    int magnitude = 0;
    int best = 0;
    int other = 0;
    bool others_turn = false;
    bool known = false;  // after the first trial
    bool up = false;     // whether the last trial was of more threads
    int rounds = 0;
    Tally window, best_sum, other_sum;
    int64_t last_trial = 0, interval = 0;      // the next trial begins after this interval,
    int64_t run_since = 0, run_first = 0;      // and after this kind has run for this long
    int64_t recent_ns = 0, recent_waited = 0, recent_runs = 0;  // decaying sums
  };

  Kind& kind(const void* what, double work, int64_t now);
  // The length of a window in nanoseconds.
  int64_t length(const Kind& kind, int64_t now) const;
  // The number of threads to try next, or 0.
  int candidate(Kind& kind, int64_t now) const;
  int fewer(int threads) const;
  int more(int threads) const;
  void judge(Kind& kind, int64_t now);
  void end_trial(Kind& kind, bool won, int64_t now);

  int max_threads_;
  int64_t disturbed_until_ = 0;
  std::array<Kind, 256> kinds_;
  std::array<int, 64> starts_;  // the choice of the last trial of each magnitude
};

}  // namespace rushlight
