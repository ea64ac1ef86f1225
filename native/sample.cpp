#include "sample.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace rushlight {

namespace {

float greatest(std::span<const float> values) {
  constexpr size_t kChains = 16;
  float chains[kChains];
  std::fill_n(chains, kChains, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i + kChains <= values.size(); i += kChains) {
    for (size_t j = 0; j < kChains; ++j) chains[j] = values[i + j] > chains[j] ? values[i + j] : chains[j];
  }
  for (size_t i = values.size() / kChains * kChains; i < values.size(); ++i) chains[0] = std::max(chains[0], values[i]);
  return *std::max_element(chains, chains + kChains);
}

// The k-th greatest, or less than everything where there are no more than k.
float kth_greatest(std::span<const float> values, int64_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(values.size())) return -std::numeric_limits<float>::infinity();
  std::vector<float> sorted(values.begin(), values.end());
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  return sorted[static_cast<size_t>(k - 1)];
}

// In several chains, for one addition waits for the one before.
double sum(std::span<const float> values) {
  constexpr size_t kChains = 8;
  double chains[kChains] = {};
  size_t i = 0;
  for (; i + kChains <= values.size(); i += kChains) {
    for (size_t j = 0; j < kChains; ++j) chains[j] += values[i + j];
  }
  for (; i < values.size(); ++i) chains[0] += values[i];
  return std::accumulate(std::begin(chains), std::end(chains), 0.0);
}

// Zeroes all but the fewest weights, greatest first and earlier ids before later equals, that make up `share` of their
// sum. The greatest weight is 1. Only those that can be among them are sorted: a few hundred most often.
void keep_top_share(std::vector<float>& weights, double share) {
  const double wanted = share * sum(weights);
  std::vector<int32_t> order;
  for (float least = 1e-2f;; least = least > 1e-30f ? least * 1e-2f : 0) {
    double reached = 0;
    order.clear();
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] < least) continue;
      reached += weights[i];
      order.push_back(static_cast<int32_t>(i));
    }
    if (reached >= wanted || least == 0) break;
  }
  const auto before = [&](int32_t a, int32_t b) { return weights[a] != weights[b] ? weights[a] > weights[b] : a < b; };
  std::ranges::sort(order, before);
  double reached = 0;
  size_t kept = 0;
  while (kept < order.size() && reached < wanted) reached += weights[order[kept++]];
  const int32_t last = order[kept - 1];
  for (size_t i = 0; i < weights.size(); ++i) {
    if (before(last, static_cast<int32_t>(i))) weights[i] = 0;
  }
}

// The first index at which the running sum of the weights exceeds `share` of the whole.
int64_t at_share(std::span<const float> weights, double share) {
  constexpr size_t kBlock = 256;
  std::vector<double> sums;
  for (size_t i = 0; i < weights.size(); i += kBlock) {
    sums.push_back(sum(weights.subspan(i, std::min(kBlock, weights.size() - i))));
  }
  const double target = share * std::accumulate(sums.begin(), sums.end(), 0.0);
  size_t block = 0;
  double reached = 0;
  while (block + 1 < sums.size() && reached + sums[block] <= target) reached += sums[block++];
  for (size_t i = block * kBlock; i < weights.size(); ++i) {
    reached += weights[i];
    if (reached > target) return static_cast<int64_t>(i);
  }
  // Rounding has put the target at the very end.
  return std::ranges::find_if(weights.rbegin(), weights.rend(), [](float w) { return w > 0; }).base() -
         weights.begin() - 1;
}

}  // namespace

int64_t sample(std::span<const float> logits, const SamplingSettings& settings, double share, const Kernels& kernels) {
  const float least = kth_greatest(logits, settings.top_k);
  const float most = greatest(logits);
  const auto inverse = static_cast<float>(std::min(1.0 / settings.temperature, 1e38));
  // Kept for the next draw: fresh memory of this size would come from the operating system, page by page.
  thread_local std::vector<float> weights;
  weights.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = logits[i] >= least ? (logits[i] - most) * inverse : -std::numeric_limits<float>::infinity();
  }
  kernels.exp(weights.data(), weights.data(), static_cast<int>(weights.size()));
  if (settings.top_p < 1) keep_top_share(weights, settings.top_p);
  if (settings.min_p > 0) {
    for (float& weight : weights) weight = weight < settings.min_p ? 0 : weight;
  }
  return at_share(weights, share);
}

}  // namespace rushlight
