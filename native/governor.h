// How many threads a kind of work is given, learned from how long it takes.
#pragma once

#include <array>
#include <cstdint>

namespace rushlight {

// Compares numbers of threads by the throughput that each reaches on the same kind of work, in turn. A thread too many
// costs time where work is small, and far more where another program has its core: the others then wait, for whole time
// slices, until the kernel gives it back.
//
// Time comes in nanoseconds from the caller, so that a test can replay any machine. Plain data, of which a forked child
// may start afresh. Not for use by two threads at once.
class Governor {
 public:
  explicit Governor(int most);

  // What one run of a kind of work took, of which the caller `waited` for other threads.
  struct Run {
    const void* what;  // which operation
    double work;       // how much of it: proportional to its time on one thread
    int threads;
    int64_t began, ended, waited;
  };

  // How many threads to give the run that begins now: 1 to most.
  int threads(const void* what, double work, int64_t now);
  void ran(const Run& run);

  // Whether a caller that has waited for so much of a run does better alone.
  static bool gives_up(int threads, int64_t elapsed, int64_t waited);

 private:
  struct Tally {
    double work = 0;
    int64_t ns = 0;
    int runs = 0;
    double cost() const { return static_cast<double>(ns) / work; }
  };

  // Runs of one operation that differ in work by less than a factor of two. `best` is what they are given; while `other`
  // is not 0 it is on trial against it: windows of each in turn, `round` of them so far.
  struct Kind {
    const void* what = nullptr;
    int magnitude = 0;
    int best = 0;
    int other = 0;
    bool others_turn = false;
    bool known = false;  // it had a trial
    bool up = false;     // where the last trial went
    int rounds = 0;
    Tally window, best_sum, other_sum;
    int64_t last_trial = 0, interval = 0;      // the next trial is no sooner,
    int64_t run_since = 0, run_first = 0;      // nor before this kind has run for so long
    int64_t recent_ns = 0, recent_waited = 0, recent_runs = 0;  // halved as they grow
  };

  Kind& kind(const void* what, double work, int64_t now);
  // Of a window: nanoseconds.
  int64_t length(const Kind& kind, int64_t now) const;
  // The number to try next, or 0.
  int candidate(Kind& kind, int64_t now) const;
  int fewer(int threads) const;
  int more(int threads) const;
  void judge(Kind& kind, int64_t now);
  void end_trial(Kind& kind, bool won, int64_t now);

  int most_;
  int64_t disturbed_until_ = 0;
  std::array<Kind, 256> kinds_;
  std::array<int, 64> starts_;  // what the last trial of each magnitude chose
};

}  // namespace rushlight
