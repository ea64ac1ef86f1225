// The greatest value of each stretch of a row: what the draw of a token looks at first.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

// out[i] = the greatest of x[kStretch i] to x[kStretch (i + 1)], of what is left in the last.
inline void maxima(const float* x, int n, float* out) {
  int i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    F32 most = load<F32>(x + i);
    for (int j = kLanes; j < kStretch; j += kLanes) most = max(load<F32>(x + i + j), most);
    *out++ = reduce_max(most);
  }
  if (i == n) return;
  float most = x[i];
  for (++i; i < n; ++i) most = x[i] > most ? x[i] : most;
  *out = most;
}

}  // namespace rushlight::RUSHLIGHT_ISA
