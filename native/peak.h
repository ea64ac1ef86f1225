// Multiplies and adds in registers, to measure the peak of the arithmetic that products of a format use.
#pragma once

#include "linear.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kChains = 12;       // sums that do not wait for one another: latency times units, and more
inline constexpr int64_t kSteps = 4096;  // of a part

// Runs `step` on kChains sums, kSteps times for each part.
template <class Sum, class Step>
int64_t run_chains(int64_t parts, Sum start, Step step) {
  Sum sums[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) sum = start += 1;  // sums that are equal would be computed once
  for (int64_t i = 0; i < parts * kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) {
      step(sum);
      keep_in_register(sum);
    }
  }
#pragma GCC unroll 12
  for (auto& sum : sums) {
    const Sum last = sum;
    asm volatile("" : : "m"(last));  // a result that nobody uses would not be computed
  }
  return parts * kSteps * kChains * kLanes * 2;  // a multiplication and an addition a lane
}

// Returns the number of operations.
template <Format kFormat>
int64_t peak(int64_t parts) {
  if constexpr (kFormat >= Format::kInt8) {
    constexpr int kBits = kFormat == Format::kInt8 ? 8 : kFormat == Format::kInt6 ? 6 : 4;
    const int8_t bytes[4] = {1, 2, 3, 4};
    Quad x = load_quad(bytes);
    auto w = reinterpret_cast<U8>(broadcast(0x01020304));
    return 4 * run_chains(parts, decltype(Dot<kBits>::sum){}, [&](auto& sum) {
      keep_in_register(w);  // AVX2 multiplies before it adds: that product too belongs into the loop
      Dot<kBits> dot = {sum};
      Dot<kBits>::add(dot, w, x);
      sum = dot.sum;
    });
#if defined(__AVX512BF16__)
  } else if constexpr (kFormat == Format::kBF16) {
    const auto x = reinterpret_cast<__m512bh>(broadcast(0x3f003f00));
    return 2 * run_chains(parts, broadcast(1.0f), [&](F32& sum) { sum = _mm512_dpbf16_ps(sum, x, x); });
#endif
  } else {
    F32 x = broadcast(0.999f), y = broadcast(0.001f);
    keep_in_register(x);
    keep_in_register(y);
    return run_chains(parts, broadcast(1.0f), [&](F32& sum) { sum = fma(sum, x, y); });
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
