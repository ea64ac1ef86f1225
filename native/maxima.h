// The maximum of each segment of a row of logits, which sampling looks at first.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

// out[i] = the maximum of segment i of kSegment floats; the last segment may be shorter. False if a float is NaN.
inline bool maxima(const float* x, int n, float* out) {
  I32 unordered = {};
  int i = 0;
  for (; i + kSegment <= n; i += kSegment) {
    F32 most = load<F32>(x + i);
    unordered |= most != most;
    for (int j = kLanes; j < kSegment; j += kLanes) {
      const F32 next = load<F32>(x + i + j);
      unordered |= next != next;
      most = max(next, most);
    }
    *out++ = reduce_max(most);
  }
  bool ordered = true;
  for (int j = 0; j < kLanes; ++j) ordered &= unordered[j] == 0;
  if (i == n) return ordered;
  float most = x[i];
  for (; i < n; ++i) {
    ordered &= x[i] == x[i];
    most = x[i] > most ? x[i] : most;
  }
  *out = most;
  return ordered;
}

}  // namespace rushlight::RUSHLIGHT_ISA
