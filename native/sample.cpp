#include "sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace rushlight {

namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Reused between calls: fresh memory of this size would come from the operating system, page by page.
struct Scratch {
  std::vector<float> adjusted;  // the logits, where the row adjusts some
  std::vector<float> maxima;    // of each kSegment logits
  std::vector<float> values;    // scratch for partitioning
  std::vector<int32_t> ids;     // the candidate tokens, in order; empty for all
  std::vector<float> weights;   // of the candidates
};

float kth_largest(std::span<const float> values, size_t k, std::vector<float>& scratch) {
  scratch.assign(values.begin(), values.end());
  std::nth_element(scratch.begin(), scratch.begin() + static_cast<ptrdiff_t>(k - 1), scratch.end(), std::greater<>());
  return scratch[k - 1];
}

// Fills ids and weights with the k largest logits and all that equal the last of them.
void keep_top(std::span<const float> logits, size_t k, Scratch& scratch) {
  // k segments have a maximum of at least `floor`, so the k-th largest logit is at least `floor`.
  const auto& maxima = scratch.maxima;
  const float floor = k <= maxima.size() ? kth_largest(maxima, k, scratch.values) : kNegativeInfinity;
  for (size_t segment = 0; segment < maxima.size(); ++segment) {
    if (maxima[segment] < floor) continue;
    for (size_t i = segment * kSegment; i < std::min((segment + 1) * kSegment, logits.size()); ++i) {
      if (logits[i] < floor) continue;
      scratch.ids.push_back(static_cast<int32_t>(i));
      scratch.weights.push_back(logits[i]);
    }
  }
  const float least = kth_largest(scratch.weights, k, scratch.values);
  for (float& logit : scratch.weights) logit = logit < least ? kNegativeInfinity : logit;
}

// In several chains, because each addition waits for the previous one.
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

// Zeroes all but the fewest weights, largest first and the first of equals, whose sum reaches p of the total. Weights
// are at most 1. They are summed in bins by their leading bits, and only the bin that reaches p is sorted.
void keep_top_p(std::span<float> weights, double p) {
  constexpr int kShift = 19;  // 16 bins to a factor of 2
  const auto bin_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  std::array<double, (std::bit_cast<uint32_t>(1.0f) >> kShift) + 1> bins = {};
  const double total = sum(weights), wanted = p * total;
  // All weights below this add up to less than the part that is dropped.
  const auto least = static_cast<float>((total - wanted) / static_cast<double>(weights.size()));
  for (const float weight : weights) {
    if (weight >= least) bins[bin_of(weight)] += weight;
  }
  size_t bin = bins.size() - 1;
  double reached = 0;
  for (; bin > 0 && reached + bins[bin] < wanted; --bin) reached += bins[bin];

  std::vector<int32_t> order;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (bin_of(weights[i]) == bin) order.push_back(static_cast<int32_t>(i));
  }
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  size_t kept = 0;
  while (kept < order.size() && reached < wanted) reached += weights[order[kept++]];
  for (size_t i = kept; i < order.size(); ++i) weights[order[i]] = 0;
  const float edge = std::bit_cast<float>(static_cast<uint32_t>(bin << kShift));
  for (float& weight : weights) weight = weight < edge ? 0 : weight;
}

// The first index at which the cumulative sum of the weights exceeds `uniform` of the total.
size_t at_uniform(std::span<const float> weights, double uniform) {
  constexpr size_t kPart = 256;
  std::vector<double> sums;
  for (size_t i = 0; i < weights.size(); i += kPart) {
    sums.push_back(sum(weights.subspan(i, std::min(kPart, weights.size() - i))));
  }
  const double target = uniform * std::accumulate(sums.begin(), sums.end(), 0.0);
  size_t part = 0;
  double reached = 0;
  while (part + 1 < sums.size() && reached + sums[part] <= target) reached += sums[part++];
  for (size_t i = part * kPart; i < weights.size(); ++i) {
    reached += weights[i];
    if (reached > target) return i;
  }
  // Rounding put the target at the very end: take the last token with a probability.
  size_t last = weights.size() - 1;
  while (last > 0 && weights[last] == 0) --last;
  return last;
}

std::span<const float> adjusted(std::span<const float> logits, const SamplingRow& row, std::vector<float>& to) {
  if (row.ids.empty() && row.allowed.empty()) return logits;
  to.resize(logits.size());
  if (row.allowed.empty()) std::ranges::copy(logits, to.begin());
  float* kept = to.data();
  for (size_t i = 0; i < row.allowed.size(); ++i) {
    const float logit = logits[i];  // read unconditionally, so that the loop vectorises
    kept[i] = row.allowed[i] != 0 ? logit : kNegativeInfinity;
  }
  for (size_t i = 0; i < row.ids.size(); ++i) {
    float& logit = to[static_cast<size_t>(row.ids[i])];
    const auto factor = static_cast<float>(row.factors[i]);
    logit = static_cast<float>(double{logit > 0 ? logit / factor : logit * factor} + row.offsets[i]);
  }
  return to;
}

// The index of the first of the largest logits.
int32_t first_maximum(std::span<const float> logits, const std::vector<float>& maxima, float most) {
  const auto first = (std::ranges::find(maxima, most) - maxima.begin()) * ptrdiff_t{kSegment};
  return static_cast<int32_t>(std::find(logits.begin() + first, logits.end(), most) - logits.begin());
}

int32_t sample(std::span<const float> logits, const SamplingRow& row, float most, Scratch& scratch,
               const Kernels& kernels) {
  auto& ids = scratch.ids;
  auto& weights = scratch.weights;
  ids.clear(), weights.clear();
  if (row.top_k > 0 && row.top_k < static_cast<int64_t>(logits.size())) {
    keep_top(logits, static_cast<size_t>(row.top_k), scratch);
  } else {
    weights.assign(logits.begin(), logits.end());
  }
  const auto inverse = static_cast<float>(std::min(1.0 / row.temperature, 1e38));
  for (float& weight : weights) weight = (weight - most) * inverse;
  kernels.exp(weights.data(), weights.data(), static_cast<int>(weights.size()));
  if (row.top_p < 1) keep_top_p(weights, row.top_p);
  if (row.min_p > 0) {
    auto least = static_cast<float>(row.min_p);
    if (least < row.min_p) least = std::nextafter(least, 2.0f);
    for (float& weight : weights) weight = weight < least ? 0 : weight;
  }
  const size_t sampled = at_uniform(weights, row.uniform);
  return ids.empty() ? static_cast<int32_t>(sampled) : ids[sampled];
}

}  // namespace

int32_t sample(std::span<const float> logits, const SamplingRow& row, const Kernels& kernels) {
  thread_local Scratch scratch;
  logits = adjusted(logits, row, scratch.adjusted);
  auto& maxima = scratch.maxima;
  maxima.resize((logits.size() + kSegment - 1) / kSegment);
  const bool ordered = kernels.maxima(logits.data(), static_cast<int>(logits.size()), maxima.data());
  const float most = *std::ranges::max_element(maxima);
  if (!ordered || !std::isfinite(most)) return -1;
  return row.temperature == 0 ? first_maximum(logits, maxima, most) : sample(logits, row, most, scratch, kernels);
}

}  // namespace rushlight
