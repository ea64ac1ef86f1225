// Activations: (rows, columns) of float32 in memory.
#pragma once

#include <cstdint>
#include <memory>

namespace rushlight {

class Device;

// Rows that lie `stride` floats apart, in memory that somebody else owns.
struct View {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  float* row(int64_t i) const { return data + i * stride; }
};

// A view with its memory, which arrays split off one share. Only a Device makes arrays, and every array it computes is
// whole and contiguous but for the end of its rows, which are padded to whole panels.
struct Array : View {
  std::shared_ptr<Device> device;
  std::shared_ptr<float> memory;
};

}  // namespace rushlight
