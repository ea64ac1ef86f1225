// The greatest value of each stretch of a row: what the choice of a token looks at first.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

// out[i] = the greatest of x[kStretch i] to x[kStretch (i + 1)], of what is left in the last. False if one is NaN.
inline bool maxima(const float* x, int n, float* out) {
  I32 unordered = {};
  int i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    F32 most = load<F32>(x + i);
    unordered |= most != most;
    for (int j = kLanes; j < kStretch; j += kLanes) {
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
