// Products of bf16 by AMX, whose tile registers hold 16 rows of 64 bytes: one instruction multiplies 16 rows of 32
// activations by 16 outputs. It sums the even and the odd inputs, each in order, and then adds both to the result. A row
// of a register does not depend on the others, so a row of activations has the same bits in any batch.
#pragma once

#include "linear.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kRegisterRows = 16;
inline constexpr int kRegisterOutputs = 16;

// The shape of each register, as LDTILECFG reads it. Instructions take literal numbers of registers, which are here:
//     0 1   sums of the first 16 rows, for the first and second 16 outputs of a panel
//     2 3   sums of the second 16 rows
//     4 5   activations of the first and second 16 rows
//     6 7   weights of the first and second 16 outputs
struct alignas(64) RegisterShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // For a group of up to 32 rows of activations.
  explicit RegisterShapes(int n_rows) {
    const int first = n_rows < kRegisterRows ? n_rows : kRegisterRows;
    for (int i = 0; i < 2; ++i) {
      set(i, first);
      set(2 + i, n_rows - first);
      set(4 + i, i == 0 ? first : n_rows - first);
      set(6 + i, kTile / 2);
    }
  }

 private:
  void set(int i, int n) {
    rows[i] = static_cast<uint8_t>(n);
    row_bytes[i] = n == 0 ? 0 : 64;
  }
};

inline void load_shapes(const RegisterShapes& shapes) {
  asm volatile("" : : "m"(shapes));  // GCC's own function claims to read no more than a pointer
  _tile_loadconfig(&shapes);
}

struct TileBF16Kernel {
  static constexpr int kRows = 2 * kRegisterRows;
  static constexpr size_t kBytes = kTileBytes[static_cast<int>(Format::kBF16)];
  using XTile = uint16_t[kTile];

  static size_t prepared_bytes(int n_in) { return static_cast<size_t>(n_in + kTile - 1) / kTile * sizeof(XTile); }

  static void prepare(const float* x, int n_in, void* prepared) {
    auto* to = static_cast<uint8_t*>(prepared);
    int i = 0;
    for (; i + kLanes <= n_in; i += kLanes) store(to + 2 * i, _mm512_cvtneps_pbh(load<F32>(x + i)));
    for (; i < n_in || i % kTile != 0; i += kLanes) {
      store(to + 2 * i, _mm512_cvtneps_pbh(load_n(x + i, i < n_in ? n_in - i : 0)));
    }
  }

  static void run(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end) {
    const int n_rows = row_end - row_begin, n_groups = (n_rows + kRows - 1) / kRows;
    // A larger block loads and stores the sums less often.
    const int block_k = n_groups == 1 ? job.n_in : static_cast<int>(2 * kBlockBytes / kBytes) * kTile;
    int shaped = 0;  // the number of rows that the registers have the shape for
    each_block<kBytes, sizeof(XTile)>(
        job, panel_begin, panel_end, row_begin, row_end, block_k, [&](const Block& block) {
          for (int group = 0, row = 0; group < n_groups; ++group) {
            const int m = rows_of(group, n_groups, n_rows);
            if (m != shaped) {
              load_shapes(RegisterShapes(m));
              shaped = m;
            }
            const auto add = m > kRegisterRows ? add_block<true> : add_block<false>;
            add(block, m, block.x + static_cast<size_t>(row) * job.x_stride_bytes, job.x_stride_bytes,
                block.y + static_cast<size_t>(row) * job.y_stride, job.y_stride);
            row += m;
          }
        });
    if (shaped != 0) _tile_release();  // so that the system need not save the registers
  }

 private:
  // For a group of m rows, more than 16 of them or not.
  template <bool kTwo>
  static void add_block(const Block& block, int m, const uint8_t* x, size_t x_stride, float* y, size_t y_stride) {
    const size_t y_stride_bytes = y_stride * sizeof(float);
    float* second = y + kRegisterRows * y_stride;
    if (block.first) {
      for (int i = 0; i < m; ++i) {  // the lines that are stored to at the end may be in another core's cache
        for (int o = 0; o < kPanel; o += 16) __builtin_prefetch(y + i * y_stride + o, 1);
      }
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
      }
    } else {
      _tile_loadd(0, y, y_stride_bytes);
      _tile_loadd(1, y + kRegisterOutputs, y_stride_bytes);
      if constexpr (kTwo) {
        _tile_loadd(2, second, y_stride_bytes);
        _tile_loadd(3, second + kRegisterOutputs, y_stride_bytes);
      }
    }
    const uint8_t* w = block.w;
    for (int k = 0; k < block.n_k; k += kTile, w += kBytes, x += sizeof(XTile)) {
      prefetch<Format::kBF16, 1, kBytes>(w);
      _tile_loadd(6, w, kPanel * 4);
      _tile_loadd(4, x, x_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + kRegisterOutputs * 4, kPanel * 4);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwo) {
        _tile_loadd(5, x + kRegisterRows * x_stride, x_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, y, y_stride_bytes);
    _tile_stored(1, y + kRegisterOutputs, y_stride_bytes);
    if constexpr (kTwo) {
      _tile_stored(2, second, y_stride_bytes);
      _tile_stored(3, second + kRegisterOutputs, y_stride_bytes);
    }
  }
};

// Multiplies tiles in registers; see peak.h. Returns the number of operations.
inline int64_t peak_of_tiles(int64_t parts) {
  constexpr int64_t kSteps = 384;  // of a part
  load_shapes(RegisterShapes(TileBF16Kernel::kRows));
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < parts * kSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return parts * kSteps * 4 * kRegisterRows * kRegisterOutputs * kTile * 2;
}

}  // namespace rushlight::RUSHLIGHT_ISA
