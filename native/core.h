// On which core a thread runs, and how it leaves one.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

namespace rushlight {

// The core that the caller runs on at this moment; -1 where that is not known.
inline int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves the calling thread to another of the cores that it may use, if there is one; it may be moved back at any time.
//
// Linux wakes a thread on the core of the one that wakes it if no core is idle, and leaves two there that take turns in
// sleeping: to its load balancer they look like one. Where other programs keep every core busy, threads that work for
// each other end up so, though they may have a core each.
inline void leave_core(int core) {
#if defined(__linux__)
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0 || CPU_COUNT(&all) < 2) return;
  cpu_set_t others = all;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof all, &all);
#else
  static_cast<void>(core);
#endif
}

}  // namespace rushlight
