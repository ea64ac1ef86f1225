// Activation functions, element by element.
#pragma once

#include "elementary.h"

namespace rushlight::RUSHLIGHT_ISA {

// x / (1 + e^-t). All but two of the functions are of this shape: 0.5 (1 + tanh(u)) is the logistic function of 2u, and
// in this form small results keep their relative precision, where 1 + tanh(u) cancels.
RUSHLIGHT_INLINE F32 times_logistic(F32 x, F32 t) { return x / (1.0f + exp(-t)); }

struct GeluTanh {
  RUSHLIGHT_INLINE F32 of(F32 x) {
    const F32 cubic = fma(x * x, x * 0.044715f, x);
    return times_logistic(x, cubic * 1.5957691216f);  // 2 √(2/π)
  }
};

struct GeluErf {
  RUSHLIGHT_INLINE F32 of(F32 x) {
    const F32 tail = erfc_positive(abs(x) * 0.70710678f);
    return 0.5f * x * select(x > 0.0f, 2.0f - tail, tail);
  }
};

struct Relu {
  RUSHLIGHT_INLINE F32 of(F32 x) { return select(x < 0.0f, F32{}, x); }  // a NaN stays one
};

struct Silu {
  RUSHLIGHT_INLINE F32 of(F32 x) { return times_logistic(x, x); }
};

struct QuickGelu {
  RUSHLIGHT_INLINE F32 of(F32 x) { return times_logistic(x, x * 1.702f); }
};

struct Sigmoid {
  RUSHLIGHT_INLINE F32 of(F32 x) { return 1.0f / (1.0f + exp(-x)); }
};

struct Tanh {
  RUSHLIGHT_INLINE F32 of(F32 x) { return tanh(x); }
};

struct Exp {
  RUSHLIGHT_INLINE F32 of(F32 x) { return exp(x); }
};

template <class Function>
void map(const float* x, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, Function::of(load<F32>(x + i)));
  if (i < n) store_n(out + i, Function::of(load_n(x + i, n - i)), n - i);
}

}  // namespace rushlight::RUSHLIGHT_ISA
