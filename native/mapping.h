// Files that are mapped into memory, for weights that are used where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace rushlight {

struct MappedRange;

// A file mapped for reading. When the file is cut, or its disk fails, reading the mapping raises SIGBUS, which by default
// ends the process. Here the entire mapping then reads as zeros, and has `failed`, which the caller checks after computing.
class Mapping : public std::enable_shared_from_this<Mapping> {
 public:
  // Maps the first `bytes` bytes of an open file, whose descriptor is duplicated. Throws std::system_error.
  Mapping(int fd, size_t bytes);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  // Installs the handler of SIGBUS, if there is none; another one that is installed before the first mapping is called
  // for every SIGBUS that is not of a mapping. The constructor calls it.
  static void guard();

  const uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int fd() const { return fd_; }
  bool failed() const;

 private:
  uint8_t* data_;
  size_t bytes_;
  int fd_;
  MappedRange* range_;
};

}  // namespace rushlight
