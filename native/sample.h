// The draw of the next token.
#pragma once

#include <cstdint>
#include <span>

#include "kernels.h"

namespace rushlight {

struct SamplingSettings {
  double temperature;  // above 0
  int64_t top_k;       // 0: all
  double top_p;        // in (0, 1]
  double min_p;        // in [0, 1]
};

// The token that stands at `share` (in [0, 1)) of the probabilities of `logits` after temperature, top-k, top-p and
// min-p, laid one after another in the order of ids: generation/sampler.py in native code, with the exponentials of
// float32. The greatest logit must be finite.
int64_t sample(std::span<const float> logits, const SamplingSettings& settings, double share, const Kernels& kernels);

}  // namespace rushlight
