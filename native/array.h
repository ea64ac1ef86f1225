// Activations: (rows, columns) of float32.
#pragma once

#include <cstdint>
#include <memory>

namespace rushlight {

class Device;

// A non-owning view of rows that are `stride` floats apart.
struct View {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  float* row(int64_t i) const { return data + i * stride; }
};

// The rows of an array in the form that products with a quantised weight read.
struct Prepared {
  void (*by)(const float* x, int n_in, void* prepared) = nullptr;
  std::shared_ptr<float> memory;
};

// A view and a share of its memory; the parts of a split array share one buffer. Only a Device makes arrays. An array
// that it computes is contiguous except for the padding of its rows to full panels.
struct Array : View {
  std::shared_ptr<Device> device;
  std::shared_ptr<float> memory;
  // Made by the first product that needs it and kept for the next, unless the memory is exposed: a NumPy view or
  // another array may then change the values. For Device, which guards both.
  mutable Prepared prepared = {};
  mutable bool exposed = false;
};

}  // namespace rushlight
