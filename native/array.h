// Activations: (rows, columns) of float32 in memory.
#pragma once

#include <cstdint>
#include <memory>

namespace rushlight {

class Device;

// A view of rows that lie `stride` floats apart; arrays split off one share its memory. Only a Device makes arrays, and
// every array it computes is whole and contiguous but for the end of its rows, which are padded to whole panels.
struct Array {
  std::shared_ptr<Device> device;
  std::shared_ptr<float> memory;
  float* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  float* row(int64_t i) const { return data + i * stride; }
};

}  // namespace rushlight
