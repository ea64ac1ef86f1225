// Worker threads that share the parts of operations.
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

// Items 0 to n, processed in parts of at least `min_items`, in any order and on any threads. Does not own its context.
struct Stage {
  void (*call)(void* context, int64_t begin, int64_t end);
  void* context;
  int64_t n;
  int64_t min_items;
  double work;  // of an item: proportional to its time among stages of one call
  // The weights that an item streams from memory, or null if it streams none.
  std::span<const uint8_t> (*weights)(const void* context, int64_t item) = nullptr;
};

// Threads wait for work by spinning for a few hundred microseconds, within which the next step of a decode arrives, and
// then sleep: waking a thread takes as long as a small operation, but an idle program must not burn a core.
//
// A thread that waits for others fetches into its cache what it will read first of the next weights: decoding is bound
// by memory, which would idle too.
//
// A pool that adapts gives a call the number of threads that its Governor chooses; the others sleep. If threads of a
// call are not scheduled, the caller finishes it.
//
// Any thread may call. While one call uses the workers, others run on their calling threads. After a fork the child has
// no workers: the first call there starts new ones.
class Pool {
 public:
  // n_threads includes the caller.
  Pool(int n_threads, bool adapts) : n_threads_(n_threads), adapts_(adapts), governor_(n_threads) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int n_threads() const { return n_threads_; }

  // The work of an item, if this many items justify a thread.
  static double work_of(int64_t min_items) { return 1.0 / static_cast<double>(min_items); }

  // Calls body(begin, end) for parts of 0 to n, and returns when all are done.
  template <class Body>
  void share(int64_t n, int64_t min_items, double work, Body&& body) {
    if (n_threads_ == 1 || n <= min_items) {
      if (n > 0) body(int64_t{0}, n);
      return;
    }
    const Stage stage = {[](void* context, int64_t begin, int64_t end) {
                           (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
                         },
                         const_cast<void*>(static_cast<const void*>(&body)), n, min_items, work};
    run({&stage, 1});
  }

  // Runs stages in order, each only after the previous one is complete. The workers are woken once for all of them, and
  // synchronise between stages without sleeping.
  void run(std::span<const Stage> stages);

 private:
  struct Workers;

  const int n_threads_;
  const bool adapts_;
  Governor governor_;
  std::mutex busy_;
  Workers* workers_ = nullptr;
  uint64_t forks_ = 0;  // the number of forks since the process that started the workers
};

}  // namespace rushlight
