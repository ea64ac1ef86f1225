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
  std::vector<float> logits;    // of the candidates, unless they are all
  std::vector<float> weights;   // of the candidates
  std::vector<double> sums;     // of each kPart weights
};

float kth_largest(std::span<const float> values, size_t k, std::vector<float>& scratch) {
  scratch.assign(values.begin(), values.end());
  std::nth_element(scratch.begin(), scratch.begin() + static_cast<ptrdiff_t>(k - 1), scratch.end(), std::greater<>());
  return scratch[k - 1];
}

// Fills ids and logits with all logits of at least `floor`.
void keep_from(std::span<const float> logits, float floor, Scratch& scratch) {
  auto& ids = scratch.ids;
  auto& kept = scratch.logits;
  size_t n = 0;
  for (size_t segment = 0; segment < scratch.maxima.size(); ++segment) {
    if (scratch.maxima[segment] < floor) continue;
    ids.resize(n + kSegment), kept.resize(n + kSegment);
    for (size_t i = segment * kSegment; i < std::min((segment + 1) * kSegment, logits.size()); ++i) {
      ids[n] = static_cast<int32_t>(i), kept[n] = logits[i];
      n += logits[i] >= floor ? 1 : 0;  // without a branch, which would often be mispredicted
    }
  }
  ids.resize(n), kept.resize(n);
}

// Fills ids and logits with the k largest logits and all that equal the last of them.
void keep_top(std::span<const float> logits, size_t k, Scratch& scratch) {
  // k segments have a maximum of at least `floor`, so the k-th largest logit is at least `floor`.
  const auto& maxima = scratch.maxima;
  keep_from(logits, k <= maxima.size() ? kth_largest(maxima, k, scratch.values) : kNegativeInfinity, scratch);
  const float least = kth_largest(scratch.logits, k, scratch.values);
  for (float& logit : scratch.logits) logit = logit < least ? kNegativeInfinity : logit;
}

// A logit below which all weights, exp((logit - most) * factor), are below `least`; the margin covers their rounding.
float logit_of(double least, float most, float factor) {
  return static_cast<float>(most + (std::log(least) - 1e-3) / factor);
}

// Keeps the fewest weights, largest first and the first of equals, whose sum reaches p of the total: ids and weights are
// then those that may be among them, the others of which are 0. Weights are at most 1. They are summed in bins by their
// leading bits, and only the bin that reaches p is sorted.
void keep_top_p(std::span<const float> logits, float most, float factor, double p, Scratch& scratch) {
  auto& weights = scratch.weights;
  const double total = std::accumulate(scratch.sums.begin(), scratch.sums.end(), 0.0), wanted = p * total;
  // All weights below this add up to less than the part that is dropped.
  const auto least = static_cast<float>((total - wanted) / static_cast<double>(weights.size()));
  if (scratch.ids.empty()) {
    keep_from(logits, logit_of(least, most, factor), scratch);
    for (size_t i = 0; i < scratch.ids.size(); ++i) weights[i] = weights[static_cast<size_t>(scratch.ids[i])];
    weights.resize(scratch.ids.size());
  }

  constexpr int kShift = 19;  // 16 bins to a factor of 2
  const auto bin_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  std::array<double, (std::bit_cast<uint32_t>(1.0f) >> kShift) + 1> bins = {};
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
size_t at_uniform(std::span<const float> weights, std::span<const double> sums, double uniform) {
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
  auto& sums = scratch.sums;
  ids.clear(), scratch.logits.clear();
  const auto factor = static_cast<float>(std::min(1.0 / row.temperature, 1e38));
  if (row.top_k > 0 && row.top_k < static_cast<int64_t>(logits.size())) {
    keep_top(logits, static_cast<size_t>(row.top_k), scratch);
  } else if (row.min_p > 0 && row.top_p == 1) {
    keep_from(logits, logit_of(row.min_p, most, factor), scratch);
  }
  const std::span<const float> candidates = ids.empty() ? logits : scratch.logits;
  weights.resize(candidates.size());
  sums.resize((candidates.size() + kPart - 1) / kPart);
  kernels.weights(candidates.data(), static_cast<int>(candidates.size()), most, factor, weights.data(), sums.data());
  if (row.top_p < 1) keep_top_p(logits, most, factor, row.top_p, scratch);
  if (row.min_p > 0) {
    auto least = static_cast<float>(row.min_p);
    if (least < row.min_p) least = std::nextafter(least, 2.0f);
    for (float& weight : weights) weight = weight < least ? 0 : weight;
  }
  if (row.top_p < 1 || row.min_p > 0) {
    sums.clear();
    for (size_t i = 0; i < weights.size(); i += kPart) {
      const auto end = weights.begin() + static_cast<ptrdiff_t>(std::min(i + kPart, weights.size()));
      sums.push_back(std::accumulate(weights.begin() + static_cast<ptrdiff_t>(i), end, 0.0));
    }
  }
  const size_t sampled = at_uniform(weights, sums, row.uniform);
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
