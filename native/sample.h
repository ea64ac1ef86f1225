// The choice of the next token.
#pragma once

#include <cstdint>
#include <span>

#include "kernels.h"

namespace rushlight {

// How the token of one row of logits is chosen; see backends/protocol.py.
struct SamplingRow {
  double temperature;  // 0: the likeliest token
  int64_t top_k;       // 0: all
  double top_p;        // in (0, 1]
  double min_p;        // in [0, 1]
  double uniform;       // in [0, 1)
  // First, logits above 0 are divided, others multiplied by their factor, and then shifted by their offset.
  std::span<const int32_t> ids;
  std::span<const double> factors, offsets;
  std::span<const uint8_t> allowed;  // not 0: the token may be chosen; all may if it is empty
};

// The likeliest token, the first of equals; or the one that stands at `share` of the probabilities after temperature,
// top-k, top-p and min-p, laid one after another in the order of ids: backends/reference.py in native code, with the
// exponentials of float32. -1 if the greatest logit is NaN or infinite. There is at least one.
int32_t sample(std::span<const float> logits, const SamplingRow& draw, const Kernels& kernels);

}  // namespace rushlight
