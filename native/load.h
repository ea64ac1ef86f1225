// Loads weights from files into panels: each thread reads a piece and packs it while it is in its cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "weight.h"

namespace rushlight {

// Packs a piece of a checkpoint's matrix, whose first row is row `first` of the matrix. `first` is a multiple of 32,
// and so is the number of rows, except in the last piece. False if a value is not finite or beyond the format's range.
bool pack(const Source& source, int64_t first, const Weight& weight, const Kernels& kernels);

// A parameter and the source of its bytes.
struct Load {
  std::variant<Weight, Vector> to;
  int fd;
  int64_t offset;
  Source source;  // without its bytes; a vector is one row
  bool is_packed = false;  // the file has the panels of a weight, which are not packed but copied
};

enum class LoadProblem : uint8_t { kNone, kNotFinite, kNotRead };

// Fills all parameters, also after a problem with one, and returns the problem of each. kNotRead: the file ends too
// early, or the operating system reports an error. kNotFinite: a value is not finite, or beyond the format's range.
// Throws std::bad_alloc if there is no memory to read into. Leaves a core to the program's other threads until `hurry`.
std::vector<LoadProblem> load(std::span<const Load> loads, const Kernels& kernels, Pool& pool,
                              const std::atomic<bool>& hurry);

}  // namespace rushlight
