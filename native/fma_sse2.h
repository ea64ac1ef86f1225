// A fused multiply-add for x86-64 processors without the instruction, from SSE2.
//
// In double precision the product of two floats is exact, and only the sum is rounded. Rounding it to float is a second
// rounding, which is wrong only if the first result lies halfway between two floats, or if the float is subnormal. In
// those cases the sum is rounded to odd first, so that the second rounding cannot take it for a tie (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Transactions
// on Computers 57, 2008).
#pragma once

#include <emmintrin.h>

namespace rushlight::RUSHLIGHT_ISA {

// product + addend, each exact, rounded to float once.
[[gnu::always_inline]] static inline __m128 rounded_once(__m128d product, __m128d addend) {
  const __m128d sum = product + addend, part = sum - product;
  const __m128d error = (product - (sum - part)) + (addend - part);  // exact (Knuth's TwoSum); NaN if the sum is infinite
  const __m128d zero = _mm_setzero_pd();
  const __m128i inexact = _mm_castpd_si128(_mm_or_pd(_mm_cmpgt_pd(error, zero), _mm_cmplt_pd(error, zero)));
  const __m128i bits = _mm_castpd_si128(sum);
  // An even, inexact sum moves towards its error, to the next odd number.
  const __m128i step = _mm_and_si128(_mm_andnot_si128(bits, _mm_set1_epi64x(1)), inexact);
  const __m128i apart = _mm_srli_epi64(_mm_xor_si128(bits, _mm_castpd_si128(error)), 63);
  const __m128i back = _mm_and_si128(step, apart);
  const __m128i odd = _mm_sub_epi64(_mm_add_epi64(bits, step), _mm_add_epi64(back, back));
  return _mm_cvtpd_ps(_mm_castsi128_pd(odd));
}

[[gnu::always_inline]] static inline __m128 fma_sse2(__m128 a, __m128 b, __m128 c) {
  const auto upper = [](__m128 v) { return _mm_cvtps_pd(_mm_movehl_ps(v, v)); };
  const __m128d low_product = _mm_cvtps_pd(a) * _mm_cvtps_pd(b), low_addend = _mm_cvtps_pd(c);
  const __m128d high_product = upper(a) * upper(b), high_addend = upper(c);
  const __m128d low = low_product + low_addend, high = high_product + high_addend;

  // The lower and the upper half of each of the four sums.
  const __m128 lower = _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), 0x88);
  const __m128 higher = _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), 0xdd);
  // Halfway: of the 29 bits that a float drops, only the first is set.
  const __m128i halfway = _mm_cmpeq_epi32(_mm_slli_epi32(_mm_castps_si128(lower), 3), _mm_set1_epi32(INT32_MIN));
  // Subnormal: the exponent is below the smallest of a float, 0x381 in double, and the number is not zero. The shift
  // drops the sign, and the offset turns a comparison of unsigned numbers, less 1, into one of signed numbers.
  constexpr uint32_t kTurn = 0x7fffffffu, kLeast = 2 * 0x38100000u;
  const __m128i turned = _mm_add_epi32(_mm_slli_epi32(_mm_castps_si128(higher), 1), _mm_set1_epi32(kTurn));
  const __m128i subnormal = _mm_cmplt_epi32(turned, _mm_set1_epi32(static_cast<int32_t>(kLeast + kTurn)));
  if (__builtin_expect(_mm_movemask_epi8(_mm_or_si128(halfway, subnormal)) != 0, 0)) {
    return _mm_movelh_ps(rounded_once(low_product, low_addend), rounded_once(high_product, high_addend));
  }
  return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}

}  // namespace rushlight::RUSHLIGHT_ISA
