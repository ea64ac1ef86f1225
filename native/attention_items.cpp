#include "attention_items.h"

#include <algorithm>

#include "kernels.h"

namespace rushlight {

namespace {

// The least items for a thread, if possible: then the last ones to be computed delay the others little.
constexpr int kItemsEach = 4;

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
  divide();
}

void AttentionItems::divide() {
  sequences_.resize(static_cast<size_t>(rows_.n_sequences()));
  double cost = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int s = static_cast<int>(i), n_rows = rows_.end(s) - rows_.begin(s);
    sequences_[i].n_queries = n_rows * group_;
    sequences_[i].seen = std::min(rows_.position(s) + n_rows, window_);
    cost += static_cast<double>(n_kv_head_) * sequences_[i].n_queries * sequences_[i].seen;
  }
  // As many queries as possible share a pass over the cache, as long as there are items for all threads.
  int chunk_size = kAttentionQueries;
  const double most = n_threads_ > 1 ? cost / (kItemsEach * n_threads_) : cost;
  divide(chunk_size, most);
  while (n_threads_ > 1 && n_ < kItemsEach * n_threads_ && chunk_size > kTogether) divide(chunk_size /= 2, most);
  work_ = cost * work_of_position_ / static_cast<double>(std::max<int64_t>(n_, 1));
  if (states_.size() < n_states_) states_ = std::vector<float>(n_states_);
  if (n_states_ > 0 && computed_.size() < static_cast<size_t>(n_groups_)) {
    computed_ = std::vector<std::atomic<int>>(static_cast<size_t>(n_groups_));
  }
  for (std::atomic<int>& n : computed_) n.store(0, std::memory_order_relaxed);
}

void AttentionItems::divide(int chunk_size, double most) {
  n_ = 0, n_groups_ = 0, n_states_ = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int s = static_cast<int>(i), n_rows = rows_.end(s) - rows_.begin(s), position = rows_.position(s);
    Sequence& sequence = sequences_[i];
    sequence.first_item = n_;
    sequence.first_group = n_groups_;
    sequence.n_chunks = (sequence.n_queries + chunk_size - 1) / chunk_size;
    sequence.first_chain = std::max(0, position - (window_ - 1)) / kChain;
    sequence.n_chains = (position + n_rows - 1) / kChain - sequence.first_chain + 1;
    // Many rows are items enough, and their states would need much memory.
    const bool few = n_rows == 1 || sequence.n_queries <= kAttentionQueries;
    const int chunk_queries = (sequence.n_queries + sequence.n_chunks - 1) / sequence.n_chunks;
    sequence.divided = few && sequence.n_chains > 1 && static_cast<double>(chunk_queries) * sequence.seen > most;
    const int64_t n_items = sequence.n_items(n_kv_head_);
    if (sequence.divided) {
      sequence.states = n_states_;
      sequence.states_step = attention_state(static_cast<size_t>(chunk_queries), value_stride_);
      n_states_ += static_cast<size_t>(n_items) * sequence.states_step;
    }
    n_ += n_items;
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
