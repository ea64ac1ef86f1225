// Carries std::bad_alloc from a worker thread, which an exception must not leave, to the caller.
#pragma once

#include <atomic>
#include <new>

namespace rushlight {

class OutOfMemory {
 public:
  // Calls part(), unless an earlier part ran out of memory.
  template <class Part>
  void watch(Part&& part) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      part();
    } catch (const std::bad_alloc&) {
      failed_.store(true, std::memory_order_relaxed);
    }
  }

  // After all parts: throws std::bad_alloc if one ran out of memory, and resets.
  void raise() {
    if (failed_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
  }

 private:
  std::atomic<bool> failed_ = false;
};

}  // namespace rushlight
