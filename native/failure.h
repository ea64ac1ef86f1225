// Lack of memory in a worker thread, which an exception must not leave, brought to the caller.
#pragma once

#include <atomic>
#include <new>

namespace rushlight {

class OutOfMemory {
 public:
  // Calls part(); once memory is lacking, nothing more.
  template <class Part>
  void watch(Part&& part) noexcept {
    if (lacking_.load(std::memory_order_relaxed)) return;
    try {
      part();
    } catch (const std::bad_alloc&) {
      lacking_.store(true, std::memory_order_relaxed);
    }
  }

  // When all parts are over: throws std::bad_alloc if it was lacking in one, and is as new.
  void raise() {
    if (lacking_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
  }

 private:
  std::atomic<bool> lacking_ = false;
};

}  // namespace rushlight
