// The passes of sampling over an entire row of logits: the maximum of each segment, and the weights of all tokens.
#pragma once

#include "elementary.h"
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

// In several chains, because each addition waits for the previous one.
RUSHLIGHT_INLINE double sum_part(const float* x, int n) {
  using F64 = double __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(32)));
  constexpr int kChains = 8;
  F64 chains = {};
  int i = 0;
  for (; i + kChains <= n; i += kChains) {
    Floats next;
    __builtin_memcpy(&next, x + i, sizeof next);
    chains += __builtin_convertvector(next, F64);
  }
  for (; i < n; ++i) chains[0] += x[i];
  double sum = 0;
  for (int j = 0; j < kChains; ++j) sum += chains[j];
  return sum;
}

// out[i] = exp((x[i] - most) * factor); sums[i] = the sum of part i of kPart weights, in the order of `sum_part`.
inline void weights(const float* x, int n, float most, float factor, float* out, double* sums) {
  const F32 shift = broadcast(most), scale = broadcast(factor);
  for (int part = 0; part < n; part += kPart) {
    const int end = part + kPart < n ? part + kPart : n;
    int i = part;
    for (; i + kLanes <= end; i += kLanes) store(out + i, exp((load<F32>(x + i) - shift) * scale));
    if (i < end) store_n(out + i, exp((load_n(x + i, end - i) - shift) * scale), end - i);
    *sums++ = sum_part(out + part, end - part);
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
