// Worker threads that share out the parts of operations.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "governor.h"

namespace rushlight {

// Items 0 to n, worked at in parts of at least `least` items, in no order and on any threads. Does not own its context.
struct Stage {
  void (*call)(void* context, int64_t begin, int64_t end);
  void* context;
  int64_t n;
  int64_t least;
  double work;  // of an item: proportional to its time among stages of one call
};

// Threads wait for work by spinning for a few hundred microseconds at most, in which the next step of a decode comes,
// and then sleep until there is some: a wake-up costs as much as a small operation, and an idle program must not
// burn a core.
//
// A pool that adapts gives a call as many threads as pay, by its Governor; the others sleep. Where threads of a call are
// not scheduled, it goes on with the caller alone.
//
// Any thread may call; while one call uses the workers, others do all of theirs themselves. After a fork the child has
// no workers: the first call there starts new ones.
class Pool {
 public:
  // n_threads counts the caller.
  Pool(int n_threads, bool adapts) : n_threads_(n_threads), adapts_(adapts), governor_(n_threads) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int n_threads() const { return n_threads_; }

  // The work of an item of which `least` are worth a thread.
  static double work_of(int64_t least) { return 1.0 / static_cast<double>(least); }

  // Calls body(begin, end) for parts of 0 to n, and returns when all are done.
  template <class Body>
  void share(int64_t n, int64_t least, double work, Body&& body) {
    if (n_threads_ == 1 || n <= least) {
      if (n > 0) body(int64_t{0}, n);
      return;
    }
    const Stage stage = {[](void* context, int64_t begin, int64_t end) {
                           (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
                         },
                         const_cast<void*>(static_cast<const void*>(&body)), n, least, work};
    run({&stage, 1});
  }

  // Works at stages one after the other: all of one is done before anything of the next begins. The workers are called
  // once for all of them, and meet between the stages without sleeping.
  void run(std::span<const Stage> stages);

 private:
  struct Crew;

  const int n_threads_;
  const bool adapts_;
  Governor governor_;
  std::mutex busy_;
  Crew* crew_ = nullptr;
  uint64_t forks_ = 0;  // how many forks this process is from the one that started the crew
};

}  // namespace rushlight
