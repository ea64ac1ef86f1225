// The core that a thread runs on, and moving away from it.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

namespace rushlight {

// The core that the caller runs on now; -1 where the operating system does not report it.
inline int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves the calling thread to another of its allowed cores, if there is one. The scheduler may move it back.
//
// If no core is idle, Linux wakes a thread on the core of its waker, and leaves both there: as they sleep alternately,
// they look like one thread to its load balancer. So when other programs keep every core busy, threads that wait for
// each other may share one core while others are available.
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
