// Releasing the GIL, in threads that may outlive the interpreter.
#pragma once

#include <Python.h>
#include <unistd.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace rushlight {

// Calls a function that may wait for the GIL.
//
// While Python finalises, it ends every other thread that requests the GIL by pthread_exit. With glibc that unwinds the
// stack, and frames that catch every exception (nanobind's) or are noexcept then abort the process. So a daemon thread
// sleeps here until the process ends, as Python itself does from 3.14 on.
template <class Call>
auto or_sleep(Call&& call) {
#if defined(__GLIBCXX__)
  try {
    return call();
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  return call();
#endif
}

// Releases the GIL for its lifetime.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    or_sleep([this] { PyEval_RestoreThread(state_); });
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* const state_;
};

template <class Work>
auto unlocked(Work&& work) {
  const Unlocked without_lock;
  return work();
}

}  // namespace rushlight
