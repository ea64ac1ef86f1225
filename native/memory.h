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

// The product of sizes. Throws std::bad_alloc where it exceeds any address space.
size_t checked_product(std::initializer_list<size_t> sizes);

// Zeroed memory from the operating system, on huge pages where available: address translation of 4 KiB pages costs a
// weight stream about a quarter of its bandwidth. A page takes memory when it is first written.
std::shared_ptr<uint8_t> map_pages(size_t bytes);

// Of each core, between 512 KiB and 2 MiB: where the operating system or a virtual machine reports nothing or something
// unlikely, the nearest of these.
size_t second_level_cache_bytes();

// Allocates blocks consecutively from mapped chunks, so that small weights share huge pages too. Each chunk is twice as
// large as all before it, within bounds: a small model reserves few addresses, which may be limited. A chunk is freed
// with its last block. Not thread-safe.
class Arena {
 public:
  std::shared_ptr<uint8_t> allocate(size_t bytes);

 private:
  std::shared_ptr<uint8_t> chunk_;
  size_t used_ = 0;
  size_t size_ = 0;
  size_t mapped_ = 0;
};

// Memory for activations, aligned to 64 bytes and cached by size: every step allocates the same sizes, and the
// operating system would zero fresh pages each time.
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
