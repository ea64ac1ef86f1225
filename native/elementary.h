// Elementary functions of vectors, to a few units in the last place.
#pragma once

#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

// e^r for x = n ln 2 + r with |r| ≤ ln 2 / 2, the product n ln 2 taken off in two parts (Cody and Waite) so that r is
// exact to the last place; by its Taylor polynomial, whose remainder is below 2^-25 there.
RUSHLIGHT_INLINE F32 exp_remainder(F32 x, F32 n) {
  F32 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32 p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  return fma(p, r * r, r) + 1.0f;
}

// e^x: 0 below the smallest normal number, infinity above the largest float.
RUSHLIGHT_INLINE F32 exp(F32 x) {
  const F32 least = broadcast(-87.33654f), most = broadcast(88.72283f);
  const F32 clamped = min(max(x, least), most);
  const F32 n = round_small(clamped * 1.44269504f);
  F32 p = exp_remainder(clamped, n);
  // 2^n in two factors: n reaches 128, beyond the exponents of a float.
  const I32 whole = __builtin_convertvector(n, I32), half = whole >> 1;
  p = p * as_f32((half + 127) << 23) * as_f32((whole - half + 127) << 23);
  p = select(x < least, F32{}, p);
  p = select(x > most, broadcast(__builtin_inff()), p);
  return select(x == x, p, x);
}

// e^x for x ≤ 0, with the same bits as exp(x): 2^n needs one factor, and nothing overflows. NaN stays NaN.
RUSHLIGHT_INLINE F32 exp_nonpositive(F32 x) {
  const F32 least = broadcast(-87.33654f), shift = broadcast(12582912.0f);  // as in round_small
  const F32 clamped = max(least, x);
  const F32 shifted = clamped * 1.44269504f + shift, n = shifted - shift;
  const U32 power = (reinterpret_cast<U32>(shifted) << 23) + 0x3f800000u;  // the last bits of `shifted` are n
  return select(x < least, F32{}, exp_remainder(clamped, n) * as_f32(power));
}

// tanh(x): near 0, where the quotient would cancel, by the polynomial of Cephes' tanhf (Moshier, 1989).
RUSHLIGHT_INLINE F32 tanh(F32 x) {
  const F32 z = x * x;
  F32 p = broadcast(-5.70498872745e-3f);
  p = fma(p, z, broadcast(2.06390887954e-2f));
  p = fma(p, z, broadcast(-5.37397155531e-2f));
  p = fma(p, z, broadcast(1.33314422036e-1f));
  p = fma(p, z, broadcast(-3.33332819422e-1f));
  const F32 small = fma(p * z, x, x);
  const F32 large = 1.0f - 2.0f / (exp(abs(x) * 2.0f) + 1.0f);
  const F32 signed_large = select(x < 0.0f, -large, large);
  return select(abs(x) < 0.625f, small, select(x == x, signed_large, x));
}

// erfc(z) for z ≥ 0, to 1.2e-7 of itself: the Chebyshev fit of Press et al., Numerical Recipes, section 6.2.
RUSHLIGHT_INLINE F32 erfc_positive(F32 z) {
  const F32 t = 1.0f / fma(z, broadcast(0.5f), broadcast(1.0f));
  F32 p = broadcast(0.17087277f);
  p = fma(p, t, broadcast(-0.82215223f));
  p = fma(p, t, broadcast(1.48851587f));
  p = fma(p, t, broadcast(-1.13520398f));
  p = fma(p, t, broadcast(0.27886807f));
  p = fma(p, t, broadcast(-0.18628806f));
  p = fma(p, t, broadcast(0.09678418f));
  p = fma(p, t, broadcast(0.37409196f));
  p = fma(p, t, broadcast(1.00002368f));
  p = fma(p, t, broadcast(-1.26551223f));
  return t * exp(fma(-z, z, p));
}

}  // namespace rushlight::RUSHLIGHT_ISA
