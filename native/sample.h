// Samples the next token from a row of logits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels.h"

namespace rushlight {

// Sampling parameters of one row of logits; see backends/protocol.py.
struct SamplingRow {
  double temperature;  // 0: the most likely token
  int64_t top_k;       // 0: all
  double top_p;        // in (0, 1]
  double min_p;        // in [0, 1]
  double uniform;       // in [0, 1)
  // Adjustments: logits above 0 are divided, others multiplied by their factor, and then their offset is added.
  std::span<const int32_t> ids;
  std::span<const double> factors, offsets;
  std::span<const uint8_t> allowed;  // nonzero: the token may be sampled; empty: all may
};

// The most likely token, the first of equals; or, with a temperature, the token at `uniform` of the cumulative
// probability in the order of ids, after top-k, top-p and min-p. As backends/reference.py, with exponentials in
// float32. -1 if the largest logit is NaN or infinite. Expects at least one logit.
int32_t sample(std::span<const float> logits, const SamplingRow& row, const Kernels& kernels);

}  // namespace rushlight
