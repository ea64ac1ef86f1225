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

constexpr float kLeast = -std::numeric_limits<float>::infinity();

// Kept from draw to draw: fresh memory of this size would come from the operating system, page by page.
struct Scratch {
  std::vector<float> adjusted;  // the logits, where the draw changes some
  std::vector<float> maxima;    // of each kStretch logits
  std::vector<float> values;    // to be partitioned
  std::vector<int32_t> ids;     // the tokens that may be drawn, in order; all if it is empty
  std::vector<float> weights;   // theirs
};

float kth_greatest(std::span<const float> values, size_t k, std::vector<float>& scratch) {
  scratch.assign(values.begin(), values.end());
  std::nth_element(scratch.begin(), scratch.begin() + static_cast<ptrdiff_t>(k - 1), scratch.end(), std::greater<>());
  return scratch[k - 1];
}

// The k greatest logits and all that equal the least of them, into ids and, still as logits, weights.
void keep_top(std::span<const float> logits, size_t k, Scratch& scratch) {
  // k stretches have a maximum of at least `floor`, so the k-th greatest logit is no less.
  const auto& maxima = scratch.maxima;
  const float floor = k <= maxima.size() ? kth_greatest(maxima, k, scratch.values) : kLeast;
  for (size_t stretch = 0; stretch < maxima.size(); ++stretch) {
    if (maxima[stretch] < floor) continue;
    for (size_t i = stretch * kStretch; i < std::min((stretch + 1) * kStretch, logits.size()); ++i) {
      if (logits[i] < floor) continue;
      scratch.ids.push_back(static_cast<int32_t>(i));
      scratch.weights.push_back(logits[i]);
    }
  }
  const float least = kth_greatest(scratch.weights, k, scratch.values);
  for (float& logit : scratch.weights) logit = logit < least ? kLeast : logit;
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

// Zeroes all but the fewest weights, greatest first and earlier before later equals, that make up `share` of their sum.
// Weights are at most 1. They are summed in bins by their first bits, and only the bin that reaches the share is sorted.
void keep_top_share(std::span<float> weights, double share) {
  constexpr int kShift = 19;  // 16 bins to a factor of 2
  const auto bin_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  std::array<double, (std::bit_cast<uint32_t>(1.0f) >> kShift) + 1> bins = {};
  const double total = sum(weights), wanted = share * total;
  // All that are below this add up to less than may be left out.
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

// The first index at which the running sum of the weights exceeds `share` of the whole.
size_t at_share(std::span<const float> weights, double share) {
  constexpr size_t kPart = 256;
  std::vector<double> sums;
  for (size_t i = 0; i < weights.size(); i += kPart) {
    sums.push_back(sum(weights.subspan(i, std::min(kPart, weights.size() - i))));
  }
  const double target = share * std::accumulate(sums.begin(), sums.end(), 0.0);
  size_t part = 0;
  double reached = 0;
  while (part + 1 < sums.size() && reached + sums[part] <= target) reached += sums[part++];
  for (size_t i = part * kPart; i < weights.size(); ++i) {
    reached += weights[i];
    if (reached > target) return i;
  }
  // Rounding has put the target at the very end.
  size_t last = weights.size() - 1;
  while (last > 0 && weights[last] == 0) --last;
  return last;
}

std::span<const float> adjusted(std::span<const float> logits, const SamplingRow& draw, std::vector<float>& to) {
  if (draw.ids.empty() && draw.allowed.empty()) return logits;
  to.resize(logits.size());
  if (draw.allowed.empty()) std::ranges::copy(logits, to.begin());
  float* kept = to.data();
  for (size_t i = 0; i < draw.allowed.size(); ++i) {
    const float logit = logits[i];  // read also where it is not needed, so that several are done at a time
    kept[i] = draw.allowed[i] != 0 ? logit : kLeast;
  }
  for (size_t i = 0; i < draw.ids.size(); ++i) {
    float& logit = to[static_cast<size_t>(draw.ids[i])];
    const auto factor = static_cast<float>(draw.factors[i]);
    logit = static_cast<float>(double{logit > 0 ? logit / factor : logit * factor} + draw.offsets[i]);
  }
  return to;
}

// The first of the greatest logits.
int32_t likeliest(std::span<const float> logits, const std::vector<float>& maxima, float most) {
  const auto first = (std::ranges::find(maxima, most) - maxima.begin()) * ptrdiff_t{kStretch};
  return static_cast<int32_t>(std::find(logits.begin() + first, logits.end(), most) - logits.begin());
}

int32_t sample(std::span<const float> logits, const SamplingRow& draw, float most, Scratch& scratch, const Kernels& kernels) {
  auto& ids = scratch.ids;
  auto& weights = scratch.weights;
  ids.clear(), weights.clear();
  if (draw.top_k > 0 && draw.top_k < static_cast<int64_t>(logits.size())) {
    keep_top(logits, static_cast<size_t>(draw.top_k), scratch);
  } else {
    weights.assign(logits.begin(), logits.end());
  }
  const auto inverse = static_cast<float>(std::min(1.0 / draw.temperature, 1e38));
  for (float& weight : weights) weight = (weight - most) * inverse;
  kernels.exp(weights.data(), weights.data(), static_cast<int>(weights.size()));
  if (draw.top_p < 1) keep_top_share(weights, draw.top_p);
  if (draw.min_p > 0) {
    auto least = static_cast<float>(draw.min_p);
    if (least < draw.min_p) least = std::nextafter(least, 2.0f);
    for (float& weight : weights) weight = weight < least ? 0 : weight;
  }
  const size_t drawn = at_share(weights, draw.uniform);
  return ids.empty() ? static_cast<int32_t>(drawn) : ids[drawn];
}

}  // namespace

int32_t sample(std::span<const float> logits, const SamplingRow& draw, const Kernels& kernels) {
  thread_local Scratch scratch;
  logits = adjusted(logits, draw, scratch.adjusted);
  auto& maxima = scratch.maxima;
  maxima.resize((logits.size() + kStretch - 1) / kStretch);
  const bool ordered = kernels.maxima(logits.data(), static_cast<int>(logits.size()), maxima.data());
  const float most = *std::ranges::max_element(maxima);
  if (!ordered || !std::isfinite(most)) return -1;
  return draw.temperature == 0 ? likeliest(logits, maxima, most) : sample(logits, draw, most, scratch, kernels);
}

}  // namespace rushlight
