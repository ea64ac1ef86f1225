// How the attention of a step is divided among threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device.h"

namespace rushlight {

// Queries of a sequence that share a key/value head, and the positions that the item computes for them: all that they
// see, or one chain.
struct AttentionItem {
  int sequence, head;
  int query_begin, query_end;
  int first_chain, n_chains;  // that the queries see
  int chain;                  // the one to compute, or -1 for all
  int64_t group;              // of the items that differ in the chain alone
  float* states;              // of the group, one for each chain
  size_t states_step;
};

// The items of a step's attention. They follow from its positions, which a recorded step learns when it runs. A few
// queries that see many positions are divided by chains (see kChainBlocks) where one sequence with few heads would not
// occupy all threads. The thread that computes the last chain of a group merges them, without a further barrier.
class AttentionItems {
 public:
  // `work` is that of one query for one position. Keeps a reference to the rows.
  AttentionItems(const Rows& rows, int window, int n_kv_head, int group, size_t value_stride, double work,
                 int n_threads);

  bool is_like(const Rows& rows, int window, int n_kv_head, int group) const {
    return &rows == &rows_ && window == window_ && n_kv_head == n_kv_head_ && group == group_;
  }
  // Divides the attention of the rows, which may have other positions than before.
  void divide();
  int64_t n() const { return n_; }
  double work() const { return work_; }  // of an item

  AttentionItem operator[](int64_t i);
  // Counts a chain as computed. True for the last one of its group: its states are to be merged.
  bool completes(const AttentionItem& item);

 private:
  // The items of a sequence: head by head, its queries in chunks of equal size, each chunk chain by chain.
  struct Sequence {
    int64_t first_item, first_group;
    int n_queries, n_chunks;
    int seen;  // positions, by the last row
    int first_chain, n_chains;
    bool divided;  // by chains
    size_t states, states_step;
    int64_t n_items(int n_kv_head) const { return int64_t{n_kv_head} * n_chunks * (divided ? n_chains : 1); }
  };
  // Into items of up to chunk_size queries, and by chains where an item would cost more than `most`: queries · positions.
  void divide(int chunk_size, double most);

  const Rows& rows_;
  const int window_, n_kv_head_, group_;
  const size_t value_stride_;
  const double work_of_position_;
  const int n_threads_;
  std::vector<Sequence> sequences_;
  int64_t n_ = 0, n_groups_ = 0;
  size_t n_states_ = 0;  // floats
  double work_ = 0;
  std::vector<float> states_;
  std::vector<std::atomic<int>> computed_;  // chains of each group
};

}  // namespace rushlight
