#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace rushlight {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Address space; memory is taken page by page. Part of a huge page at the end of each chunk is unused.
constexpr size_t kMinChunk = size_t{16} << 20, kMaxChunk = size_t{256} << 20;
constexpr size_t kMaxCached = size_t{32} << 20;  // bytes in free buffers
constexpr size_t kMaxBytes = size_t{1} << 60;  // leaves room to round up and to count in signed integers

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

size_t checked_product(std::initializer_list<size_t> sizes) {
  size_t product = 1;
  for (const size_t size : sizes) {
    if (size != 0 && product > kMaxBytes / size) throw std::bad_alloc();
    product *= size;
  }
  return product;
}

std::shared_ptr<uint8_t> map_pages(size_t bytes) {
  if (bytes > kMaxBytes) throw std::bad_alloc();
  const size_t size = round_up(std::max(bytes, size_t{1}), kHugePage) + kHugePage;
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(mapped, size, MADV_HUGEPAGE);  // advisory: without huge pages everything works, more slowly
#endif
  const auto address = reinterpret_cast<uintptr_t>(mapped);
  auto* aligned = reinterpret_cast<uint8_t*>(round_up(address, kHugePage));
  return {aligned, [mapped, size](uint8_t*) { munmap(mapped, size); }};
}

size_t second_level_cache_bytes() {
  static const size_t bytes = [] {
    long reported = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    reported = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp(static_cast<size_t>(std::max(reported, 0L)), size_t{512} << 10, size_t{2} << 20);
  }();
  return bytes;
}

std::shared_ptr<uint8_t> Arena::allocate(size_t bytes) {
  const size_t needed = round_up(bytes, 64);
  if (size_ - used_ < needed) {
    const size_t size = std::max(round_up(needed, kHugePage), std::clamp(2 * mapped_, kMinChunk, kMaxChunk));
    chunk_ = map_pages(size);
    size_ = size;
    used_ = 0;
    mapped_ += size;
  }
  std::shared_ptr<uint8_t> block(chunk_, chunk_.get() + used_);
  used_ += needed;
  return block;
}

std::shared_ptr<float> BufferCache::allocate(size_t floats) {
  const size_t bytes = round_up(std::max(floats, size_t{1}) * sizeof(float), 64);
  float* buffer = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = free_.find(bytes); found != free_.end()) {
      buffer = found->second;
      free_.erase(found);
      free_bytes_ -= bytes;
    }
  }
  if (buffer == nullptr) buffer = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (buffer == nullptr) throw std::bad_alloc();
  return {buffer, [cache = shared_from_this(), bytes](float* p) { cache->release(p, bytes); }};
}

void BufferCache::release(float* buffer, size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (free_bytes_ + bytes <= kMaxCached) {
      free_.emplace(bytes, buffer);
      free_bytes_ += bytes;
      return;
    }
  }
  std::free(buffer);
}

BufferCache::~BufferCache() {
  for (const auto& [bytes, buffer] : free_) std::free(buffer);
}

}  // namespace rushlight
