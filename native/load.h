// Weights from files into panels: each thread reads a piece and packs it while it is in its cache.
#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "weight.h"

namespace rushlight {

// The rows of a source from its row 0 are rows from `first`, a multiple of 32, on of the checkpoint's matrix. Of the
// pieces of a matrix all but the last have a multiple of 32 rows. False if a value is not finite, or beyond the format.
bool pack(const Source& source, int64_t first, const Weight& weight, const Kernels& kernels);

// A parameter and where its bytes lie.
struct Load {
  std::variant<Weight, Vector> to;
  int fd;
  int64_t offset;
  Source source;  // without its bytes; a vector is one row
};

enum class LoadProblem : uint8_t { kNone, kNotFinite, kNotRead };

// Fills the parameters, all of them, whatever is wrong with some; what is wrong with each. kNotRead: the file ends too
// soon, or the operating system reports an error. kNotFinite: a value is not finite, or beyond the format. Throws
// std::bad_alloc where memory to read into is lacking.
std::vector<LoadProblem> load(std::span<const Load> loads, const Kernels& kernels, Pool& pool);

}  // namespace rushlight
