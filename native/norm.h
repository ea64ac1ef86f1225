// Operations on a row of channels: sums, products, layer and RMS normalisation.
#pragma once

#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

inline void add(const float* a, const float* b, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load<F32>(a + i) + load<F32>(b + i));
  if (i < n) store_n(out + i, load_n(a + i, n - i) + load_n(b + i, n - i), n - i);
}

inline void multiply(const float* a, const float* b, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load<F32>(a + i) * load<F32>(b + i));
  if (i < n) store_n(out + i, load_n(a + i, n - i) * load_n(b + i, n - i), n - i);
}

inline void scale(const float* x, float factor, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load<F32>(x + i) * factor);
  if (i < n) store_n(out + i, load_n(x + i, n - i) * factor, n - i);
}

// Calls full(i, v) for each full vector of x, where i is its index and v its partial sum, then rest(i, v, n) for the n
// values that are left.
template <class Full, class Rest>
RUSHLIGHT_INLINE void for_each_vector(int n, Full&& full, Rest&& rest) {
  int i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int v = 0; v < kSumVectors; ++v) full(i + v * kLanes, v);
  }
  for (int v = 0; v < kSumVectors && i < n; ++v, i += kLanes) {
    if (i + kLanes <= n) {
      full(i, v);
    } else {
      rest(i, v, n - i);
    }
  }
}

// (x - mean) / √(variance + eps) · weight + bias, the variance from the differences, which cannot cancel.
inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, int n) {
  PartialSums sums;
  for_each_vector(
      n, [&](int i, int v) { sums.of[v] += load<F32>(x + i); },
      [&](int i, int v, int left) { sums.of[v] += load_n(x + i, left); });
  const F32 mean = broadcast(reduce_add(sums) / static_cast<float>(n));

  PartialSums squares;
  const auto add_square = [&](F32 centred, int v) { squares.of[v] = fma(centred, centred, squares.of[v]); };
  for_each_vector(
      n, [&](int i, int v) { add_square(load<F32>(x + i) - mean, v); },
      [&](int i, int v, int left) { add_square(select(lane_index() < left, load_n(x + i, left) - mean, F32{}), v); });
  const F32 deviation = broadcast(__builtin_sqrtf(reduce_add(squares) / static_cast<float>(n) + eps));

  const auto normal = [&](F32 values, F32 w, F32 b) { return fma((values - mean) / deviation, w, b); };
  const auto bias_at = [&](int i) { return bias == nullptr ? F32{} : load<F32>(bias + i); };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, normal(load<F32>(x + i), load<F32>(weight + i), bias_at(i)));
  }
  if (i < n) {
    const F32 b = bias == nullptr ? F32{} : load_n(bias + i, n - i);
    store_n(out + i, normal(load_n(x + i, n - i), load_n(weight + i, n - i), b), n - i);
  }
}

// x / √(mean of squares + eps) · (offset + weight)
inline void rms_norm(const float* x, const float* weight, float eps, float offset, float* out, int n) {
  PartialSums squares;
  const auto add_square = [&](F32 values, int v) { squares.of[v] = fma(values, values, squares.of[v]); };
  for_each_vector(
      n, [&](int i, int v) { add_square(load<F32>(x + i), v); },
      [&](int i, int v, int left) { add_square(load_n(x + i, left), v); });
  const F32 root = broadcast(__builtin_sqrtf(reduce_add(squares) / static_cast<float>(n) + eps));
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load<F32>(x + i) / root * (load<F32>(weight + i) + offset));
  if (i < n) store_n(out + i, load_n(x + i, n - i) / root * (load_n(weight + i, n - i) + offset), n - i);
}

}  // namespace rushlight::RUSHLIGHT_ISA
