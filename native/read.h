// Reads memory without arithmetic, to measure the bandwidth that products of weights can reach.
#pragma once

#include "linear.h"

namespace rushlight::RUSHLIGHT_ISA {

// The sum of the words, so that the compiler cannot eliminate the loads. `bytes` is a multiple of 64.
inline uint32_t read(const uint8_t* from, size_t bytes) {
  constexpr int kSums = 64 / (kLanes * 4);
  U32 sums[kSums] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    prefetch<Format::kF32, 1, 64>(from + i);
    for (int s = 0; s < kSums; ++s) sums[s] += load<U32>(from + i + static_cast<size_t>(s) * kLanes * 4);
  }
  U32 sum = sums[0];
  for (int s = 1; s < kSums; ++s) sum += sums[s];
  uint32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

}  // namespace rushlight::RUSHLIGHT_ISA
