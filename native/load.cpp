#include "load.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>

#include "failure.h"

namespace rushlight {

namespace {

constexpr int64_t kPieceBytes = 256 << 10;  // of a file
constexpr size_t kTaskBytes = size_t{4} << 20;  // of memory

// Rows of a matrix that are read and packed together, so that they stay in a thread's cache: whole tiles, except in the
// last piece. Of a packed weight, panels.
struct Piece {
  size_t load;
  int64_t first, rows;
};

// Consecutive pieces for one thread. They fill memory that no other thread writes, apart from the huge pages at the
// ends: when two threads touch a new huge page at once, both wait for a cleared one, and one of these is thrown away.
struct Task {
  size_t begin, end;
};

struct Work {
  std::vector<Piece> pieces;
  std::vector<Task> tasks;
};

size_t bytes_of(const Load& load) {
  if (const auto* weight = std::get_if<Weight>(&load.to)) return weight->bytes();
  return static_cast<size_t>(std::get<Vector>(load.to).n) * sizeof(float);
}

Work divide(std::span<const Load> loads) {
  Work work;
  size_t begin = 0, task_bytes = 0;
  const auto end_task = [&] {
    if (begin < work.pieces.size()) work.tasks.push_back({begin, work.pieces.size()});
    begin = work.pieces.size(), task_bytes = 0;
  };
  for (size_t i = 0; i < loads.size(); ++i) {
    if (loads[i].is_packed) {
      const auto& weight = std::get<Weight>(loads[i].to);
      const auto step = static_cast<int64_t>(std::max<size_t>(kTaskBytes / weight.panel_bytes(), 1));
      for (int64_t first = 0; first < weight.n_panels(); first += step) {
        const int64_t panels = std::min(step, weight.n_panels() - first);
        work.pieces.push_back({i, first, panels});
        task_bytes += static_cast<size_t>(panels) * weight.panel_bytes();
        if (task_bytes >= kTaskBytes) end_task();
      }
      continue;
    }
    const Source& source = loads[i].source;
    const int64_t tile_bytes = source.columns * kTile * static_cast<int64_t>(Source::item_bytes(source.dtype));
    const int64_t step = std::max<int64_t>(kPieceBytes / std::max<int64_t>(tile_bytes, 1), 1) * kTile;
    const size_t row_bytes = bytes_of(loads[i]) / static_cast<size_t>(std::max<int64_t>(source.rows, 1));
    for (int64_t first = 0; first < source.rows; first += step) {
      const int64_t rows = std::min(step, source.rows - first);
      work.pieces.push_back({i, first, rows});
      task_bytes += static_cast<size_t>(rows) * row_bytes;
      // Rows that are inputs go to every panel of the weight.
      const bool may_split = !source.rows_are_inputs || first + rows == source.rows;
      if (task_bytes >= kTaskBytes && may_split) end_task();
    }
  }
  end_task();
  return work;
}

bool read(int fd, uint8_t* to, size_t bytes, int64_t offset) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n, bytes -= static_cast<size_t>(n), offset += n;
  }
  return true;
}

bool fill(const Vector& vector, const Source& source, const Kernels& kernels) {
  alignas(64) float tile[kTile * kPanel];
  auto* values = reinterpret_cast<float*>(vector.memory.get());
  bool finite = true;
  for (int64_t column = 0; column < source.columns; column += kTile) {
    source.read_tile(0, column, tile, kernels);
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
      source.read_tile(row, column, tile, kernels);
      const int r = static_cast<int>((first + row) / kTile), c = static_cast<int>(column / kTile);
      finite &= pack_tile(tile, source.rows_are_inputs ? weight.tile(c, r) : weight.tile(r, c));
    }
  }
  return finite;
}

std::vector<LoadProblem> load(std::span<const Load> loads, const Kernels& kernels, Pool& pool,
                              const std::atomic<bool>& hurry) {
  const Work work = divide(loads);
  std::vector<std::atomic<LoadProblem>> problems(loads.size());
  OutOfMemory memory;
  const auto load_pieces = [&](const Task& task, std::vector<uint8_t>& buffer) {
    for (size_t p = task.begin; p < task.end; ++p) {
      const auto [i, first, rows] = work.pieces[p];
      if (loads[i].is_packed) {
        const auto& weight = std::get<Weight>(loads[i].to);
        const int64_t offset = loads[i].offset + first * static_cast<int64_t>(weight.panel_bytes());
        const size_t bytes = static_cast<size_t>(rows) * weight.panel_bytes();
        if (!read(loads[i].fd, weight.tile(static_cast<int>(first), 0), bytes, offset)) {
          problems[i] = LoadProblem::kNotRead;
        }
        continue;
      }
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
      const bool finite = weight != nullptr ? pack(source, first, *weight, kernels)
                                            : fill(std::get<Vector>(loads[i].to), source, kernels);
      if (!finite) problems[i] = LoadProblem::kNotFinite;
    }
  };
  // Each thread takes the next task when it is done with one: others may use its core for part of the time.
  std::atomic<size_t> next = 0;
  const auto share_tasks = [&](int n_threads, auto&& pause) {
    const auto take_tasks = [&] {
      std::vector<uint8_t> buffer;
      for (size_t t; !pause() && (t = next.fetch_add(1, std::memory_order_relaxed)) < work.tasks.size();) {
        load_pieces(work.tasks[t], buffer);
      }
    };
    pool.share(n_threads, 1, static_cast<double>(work.pieces.size()),
               [&](int64_t, int64_t) { memory.watch(take_tasks); });
  };
  if (pool.n_threads() > 1) share_tasks(pool.n_threads() - 1, [&] { return hurry.load(std::memory_order_relaxed); });
  share_tasks(pool.n_threads(), [] { return false; });
  memory.raise();
  return {problems.begin(), problems.end()};
}

}  // namespace rushlight
