// Memory for weights, caches and activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace rushlight {

// The product of sizes. Throws std::bad_alloc where it is more than any memory.
size_t checked_product(std::initializer_list<size_t> sizes);

// Zeroed memory straight from the operating system, on huge pages where it gives them: the translation of 4 KiB pages
// would cost a weight stream about a quarter of its bandwidth. Pages are taken when they are first written.
std::shared_ptr<uint8_t> map_pages(size_t bytes);

// Lays blocks of bytes one after another in mapped chunks, so that small weights share huge pages too. Each chunk is twice
// as large as all before it, within bounds: a small model takes few addresses, which a limit may count. A chunk goes
// when the last block in it does. Not for use by two threads at once.
class Arena {
 public:
  std::shared_ptr<uint8_t> allocate(size_t bytes);

 private:
  std::shared_ptr<uint8_t> chunk_;
  size_t used_ = 0;
  size_t size_ = 0;
  size_t mapped_ = 0;
};

// Memory for activations, aligned to 64 bytes, kept for the next of the same size: a step asks for the same sizes again
// and again, and fresh pages would be zeroed by the operating system each time.
class BufferCache : public std::enable_shared_from_this<BufferCache> {
 public:
  std::shared_ptr<float> allocate(size_t floats);
  ~BufferCache();

 private:
  void release(float* buffer, size_t bytes);

  std::mutex mutex_;
  std::multimap<size_t, float*> free_;
  size_t free_bytes_ = 0;
};

}  // namespace rushlight
