// Loaded parameters: vectors of floats, and matrices packed into panels (panel.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "kernels.h"
#include "panel.h"

namespace rushlight {

// (C,) floats, padded with zeros to full panels.
struct Vector {
  std::shared_ptr<uint8_t> memory;
  int n = 0;

  const float* data() const { return reinterpret_cast<const float*>(memory.get()); }
};

struct Weight {
  std::shared_ptr<uint8_t> memory;
  Format format = Format::kF32;
  int n_in = 0;
  int n_out = 0;
  bool is_mapped = false;  // of a file, which is read only

  int n_panels() const { return n_out / kPanel + (n_out % kPanel != 0); }
  int n_tiles() const { return n_in / kTile + (n_in % kTile != 0); }
  size_t tile_bytes() const { return kTileBytes[static_cast<int>(format)]; }
  size_t panel_bytes() const { return tile_bytes() * static_cast<size_t>(n_tiles()); }
  uint8_t* tile(int panel, int tile) const {
    return memory.get() + static_cast<size_t>(panel) * panel_bytes() + static_cast<size_t>(tile) * tile_bytes();
  }
  size_t bytes() const { return panel_bytes() * static_cast<size_t>(n_panels()); }

  // Unpacks the n_in values of one output.
  void gather(int output, float* values) const;
};

// A piece of a checkpoint's matrix in the file's layout: `rows` × `columns`, row by row.
struct Source {
  using Dtype = SourceDtype;

  const uint8_t* bytes;
  Dtype dtype;
  int64_t rows;
  int64_t columns;
  bool rows_are_inputs;  // GPT-2's Conv1D; otherwise rows are outputs

  static Dtype dtype_of(std::string_view name);  // a safetensors dtype; throws std::invalid_argument
  static size_t item_bytes(Dtype dtype);

  // The tile that begins at this row and column, as float [32 k][32 o], with zeros beyond the edges.
  void read_tile(int64_t row, int64_t column, float* tile, const Kernels& kernels) const;
};

}  // namespace rushlight
