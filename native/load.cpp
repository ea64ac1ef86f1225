#include "load.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>

#include "failure.h"

namespace rushlight {

namespace {

constexpr int64_t kPieceBytes = 1 << 20;

// Rows of a matrix that are read and packed together: whole tiles, except in the last piece.
struct Piece {
  size_t load;
  int64_t first, rows;
};

bool read(int fd, uint8_t* to, size_t bytes, int64_t offset) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n, bytes -= static_cast<size_t>(n), offset += n;
  }
  return true;
}

bool fill(const Vector& vector, const Source& source) {
  alignas(64) float tile[kTile * kPanel];
  auto* values = reinterpret_cast<float*>(vector.memory.get());
  bool finite = true;
  for (int64_t column = 0; column < source.columns; column += kTile) {
    source.read_tile(0, column, tile);
    for (int64_t k = 0; k < std::min<int64_t>(kTile, source.columns - column); ++k) {
      values[column + k] = tile[k * kPanel];
      finite &= std::isfinite(tile[k * kPanel]);
    }
  }
  return finite;
}

}  // namespace

bool pack(const Source& source, int64_t first, const Weight& weight, const Kernels& kernels) {
  const auto pack_tile = kernels.linear[static_cast<int>(weight.format)].pack;
  alignas(64) float tile[kTile * kPanel];
  bool finite = true;
  for (int64_t row = 0; row < source.rows; row += kTile) {
    for (int64_t column = 0; column < source.columns; column += kTile) {
      source.read_tile(row, column, tile);
      const int r = static_cast<int>((first + row) / kTile), c = static_cast<int>(column / kTile);
      finite &= pack_tile(tile, source.rows_are_inputs ? weight.tile(c, r) : weight.tile(r, c));
    }
  }
  return finite;
}

std::vector<LoadProblem> load(std::span<const Load> loads, const Kernels& kernels, Pool& pool) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < loads.size(); ++i) {
    const Source& source = loads[i].source;
    const int64_t tile_bytes = source.columns * kTile * static_cast<int64_t>(Source::item_bytes(source.dtype));
    const int64_t step = std::max<int64_t>(kPieceBytes / std::max<int64_t>(tile_bytes, 1), 1) * kTile;
    for (int64_t first = 0; first < source.rows; first += step) {
      pieces.push_back({i, first, std::min(step, source.rows - first)});
    }
  }
  std::vector<std::atomic<LoadProblem>> problems(loads.size());
  OutOfMemory memory;
  const auto load_pieces = [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> buffer;
    for (int64_t p = begin; p < end; ++p) {
      const auto [i, first, rows] = pieces[static_cast<size_t>(p)];
      Source source = loads[i].source;
      const int64_t row_bytes = source.columns * static_cast<int64_t>(Source::item_bytes(source.dtype));
      buffer.resize(std::max(buffer.size(), static_cast<size_t>(rows * row_bytes)));
      const int64_t offset = loads[i].offset + first * row_bytes;
      if (!read(loads[i].fd, buffer.data(), static_cast<size_t>(rows * row_bytes), offset)) {
        problems[i] = LoadProblem::kNotRead;
        continue;
      }
      source.bytes = buffer.data();
      source.rows = rows;
      const auto* weight = std::get_if<Weight>(&loads[i].to);
      const bool finite =
          weight != nullptr ? pack(source, first, *weight, kernels) : fill(std::get<Vector>(loads[i].to), source);
      if (!finite) problems[i] = LoadProblem::kNotFinite;
    }
  };
  pool.share(static_cast<int64_t>(pieces.size()), 1, 1,
             [&](int64_t begin, int64_t end) { memory.watch([&] { load_pieces(begin, end); }); });
  memory.raise();
  return {problems.begin(), problems.end()};
}

}  // namespace rushlight
