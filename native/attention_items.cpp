#include "attention_items.h"

#include <algorithm>

#include "kernels.h"

namespace rushlight {

namespace {

// A thread's items, if there are as many: then the last ones to be computed delay the others little.
constexpr int64_t kItemsEach = 2;

}  // namespace

AttentionItems::AttentionItems(const Rows& rows, int window, int n_kv_head, int group, size_t value_stride, double work,
                               int n_threads)
    : rows_(rows),
      window_(window),
      n_kv_head_(n_kv_head),
      group_(group),
      value_stride_(value_stride),
      work_of_position_(work),
      n_threads_(n_threads) {
  sequences_.resize(static_cast<size_t>(rows.n_sequences()));
  divide();
}

void AttentionItems::divide() {
  // As many queries as possible share a pass over the cache, as long as there are items for all threads.
  int chunk_size = kAttentionQueries;
  divide(chunk_size);
  while (n_ < kItemsEach * n_threads_ && n_threads_ > 1 && chunk_size > kTogether) divide(chunk_size /= 2);

  double positions = 0;
  size_t n_states = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& sequence = sequences_[i];
    const int s = static_cast<int>(i);
    positions += static_cast<double>(rows_.end(s) - rows_.begin(s)) * std::min(rows_.position(s) + 1, window_);
    if (!sequence.divided) continue;
    const int n_queries = (sequence.n_queries + sequence.n_chunks - 1) / sequence.n_chunks;
    sequence.states = n_states;
    sequence.states_step = attention_state(static_cast<size_t>(n_queries), value_stride_);
    n_states += static_cast<size_t>(sequence.n_items(n_kv_head_)) * sequence.states_step;
  }
  work_ = positions * work_of_position_ / static_cast<double>(std::max<int64_t>(n_, 1));
  if (states_.size() < n_states) states_ = std::vector<float>(n_states);
  if (n_states > 0 && computed_.size() < static_cast<size_t>(n_groups_)) {
    computed_ = std::vector<std::atomic<int>>(static_cast<size_t>(n_groups_));
  }
  for (std::atomic<int>& n : computed_) n.store(0, std::memory_order_relaxed);
}

void AttentionItems::divide(int chunk_size) {
  n_ = 0, n_groups_ = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int s = static_cast<int>(i), n_rows = rows_.end(s) - rows_.begin(s), position = rows_.position(s);
    Sequence& sequence = sequences_[i];
    sequence.first_item = n_;
    sequence.first_group = n_groups_;
    sequence.n_queries = n_rows * group_;
    sequence.n_chunks = (sequence.n_queries + chunk_size - 1) / chunk_size;
    sequence.first_chain = std::max(0, position - (window_ - 1)) / kChain;
    sequence.n_chains = (position + n_rows - 1) / kChain - sequence.first_chain + 1;
    // The states of many rows would need memory, and there are enough items without.
    sequence.divided = sequence.n_chains > 1 && (n_rows == 1 || sequence.n_queries <= kAttentionQueries);
    n_ += sequence.n_items(n_kv_head_);
    n_groups_ += int64_t{n_kv_head_} * sequence.n_chunks;
  }
}

AttentionItem AttentionItems::operator[](int64_t i) {
  const auto found = std::ranges::upper_bound(sequences_, i, {}, &Sequence::first_item) - 1;
  const Sequence& of = *found;
  i -= of.first_item;
  const int64_t n_chains = of.divided ? of.n_chains : 1;
  const int64_t group = i / n_chains;
  const int in_order = static_cast<int>(group % of.n_chunks);
  // Later rows see more: the first and the last chunk, the second and the last but one, so that parts are equal.
  const int chunk = in_order % 2 == 0 ? in_order / 2 : of.n_chunks - 1 - in_order / 2;
  const auto query = [&](int at) { return static_cast<int>(int64_t{of.n_queries} * at / of.n_chunks); };
  return {static_cast<int>(found - sequences_.begin()),
          static_cast<int>(group / of.n_chunks),
          query(chunk),
          query(chunk + 1),
          of.first_chain,
          of.n_chains,
          of.divided ? of.first_chain + static_cast<int>(i % n_chains) : -1,
          of.first_group + group,
          of.divided ? states_.data() + of.states + static_cast<size_t>(group * n_chains) * of.states_step : nullptr,
          of.states_step};
}

bool AttentionItems::completes(const AttentionItem& item) {
  std::atomic<int>& computed = computed_[static_cast<size_t>(item.group)];
  if (computed.fetch_add(1, std::memory_order_acq_rel) + 1 < item.n_chains) return false;
  computed.store(0, std::memory_order_relaxed);  // for the next layer
  return true;
}

}  // namespace rushlight
