// Rotary position embedding (Su et al., arXiv:2104.09864) of the heads of a row.
#pragma once

#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

// (a, b) -> (a cos - b sin, b cos + a sin), for channels i and i + n_rotated / 2 or, interleaved, 2i and 2i + 1.
template <bool kInterleaved>
void rotary(const float* x, const float* angles, int n_head, int head_dim, int n_rotated, float* out) {
  const int half = n_rotated / 2;
  const float* cosines = angles;
  const float* sines = angles + half;
  for (int h = 0; h < n_head; ++h, x += head_dim, out += head_dim) {
    if constexpr (kInterleaved) {
      for (int i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        out[2 * i] = a * cosines[i] - b * sines[i];
        out[2 * i + 1] = b * cosines[i] + a * sines[i];
      }
    } else {
      int i = 0;
      for (; i + kLanes <= half; i += kLanes) {
        const F32 a = load<F32>(x + i), b = load<F32>(x + half + i);
        const F32 cos = load<F32>(cosines + i), sin = load<F32>(sines + i);
        store(out + i, a * cos - b * sin);
        store(out + half + i, b * cos + a * sin);
      }
      if (const int n = half - i; n > 0) {
        const F32 a = load_n(x + i, n), b = load_n(x + half + i, n);
        const F32 cos = load_n(cosines + i, n), sin = load_n(sines + i, n);
        store_n(out + i, a * cos - b * sin, n);
        store_n(out + half + i, b * cos + a * sin, n);
      }
    }
    __builtin_memcpy(out + n_rotated, x + n_rotated, static_cast<size_t>(head_dim - n_rotated) * sizeof(float));
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
