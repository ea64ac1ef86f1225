// Work without the interpreter's lock, in threads that may outlive the interpreter.
#pragma once

#include <Python.h>
#include <unistd.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace rushlight {

// Calls what may wait for the interpreter's lock.
//
// Once Python is being finalised, it ends every other thread that asks for the lock, by pthread_exit: with glibc that
// unwinds the stack, and frames that catch every exception, as nanobind's do, or that throw none, abort the process then.
// So such a thread, a daemon thread, sleeps here for what is left of the process, as Python itself makes it from 3.14 on.
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

// While it lives, other Python threads go on.
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
