// Layer normalisation and the residual sum: what is done to a row of channels at once.
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

// (x - mean) / √(variance + eps) · weight + bias, the variance from the differences, which cannot cancel.
inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, int n) {
  const int whole = n / kLanes * kLanes, rest = n - whole;
  F32 sum = {};
  for (int i = 0; i < whole; i += kLanes) sum += load<F32>(x + i);
  sum += load_n(x + whole, rest);
  const F32 mean = broadcast(reduce_add(sum) / static_cast<float>(n));

  F32 squares = {};
  for (int i = 0; i < whole; i += kLanes) {
    const F32 centred = load<F32>(x + i) - mean;
    squares = fma(centred, centred, squares);
  }
  const F32 centred_rest = select(lane_index() < rest, load_n(x + whole, rest) - mean, F32{});
  squares = fma(centred_rest, centred_rest, squares);
  const F32 deviation = broadcast(__builtin_sqrtf(reduce_add(squares) / static_cast<float>(n) + eps));

  for (int i = 0; i < whole; i += kLanes) {
    const F32 normal = (load<F32>(x + i) - mean) / deviation;
    store(out + i, fma(normal, load<F32>(weight + i), load<F32>(bias + i)));
  }
  const F32 normal_rest = centred_rest / deviation;
  store_n(out + whole, fma(normal_rest, load_n(weight + whole, rest), load_n(bias + whole, rest)), rest);
}

}  // namespace rushlight::RUSHLIGHT_ISA
