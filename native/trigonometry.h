// Cosine and sine of float32 angles, correctly rounded but for about one in 2^28: the same bits on every machine, where
// the C library's depend on its version and on the processor.
#pragma once

#include <cmath>
#include <cstdint>

namespace rushlight {

struct CosSin {
  float cos, sin;
};

// Reduces by multiples of π/2 in four parts (Cody and Waite), exact for angles below 2^31, and evaluates the
// polynomials of FDLIBM's k_cos.c and k_sin.c (Sun Microsystems, 1993) in double precision.
inline CosSin cos_sin(float angle) {
  const double x = angle;
  if (!(std::abs(x) < 0x1p30)) return {std::cos(angle), std::sin(angle)};
  constexpr double kShift = 0x1.8p52;  // the unit of this magnitude is 1
  const double k = x * 0x1.45f306dc9c883p-1 + kShift - kShift;
  const double r = ((x - k * 0x1.921fbp+0) - k * 0x1.5110bp-22) - k * 0x1.1846980000000p-44 - k * 0x1.3198a2e037073p-69;
  const double z = r * r;

  const double s_tail = 8.33333333332248946124e-03 +
                        z * (-1.98412698298579493134e-04 +
                             z * (2.75573137070700676789e-06 +
                                  z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)));
  const double s = r + z * r * (-1.66666666666666324348e-01 + z * s_tail);
  const double c_tail =
      z * (4.16666666666666019037e-02 +
           z * (-1.38888888888741095749e-03 +
                z * (2.48015872894767294178e-05 +
                     z * (-2.75573143513906633035e-07 +
                          z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  const double w = 1.0 - 0.5 * z;
  const double c = w + (((1.0 - w) - 0.5 * z) + z * c_tail);

  const auto cosine = static_cast<float>(c), sine = static_cast<float>(s);
  switch (static_cast<int64_t>(k) & 3) {
    case 0: return {cosine, sine};
    case 1: return {-sine, cosine};
    case 2: return {-cosine, -sine};
    default: return {sine, -cosine};
  }
}

}  // namespace rushlight
