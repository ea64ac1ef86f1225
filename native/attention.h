// Causal attention of a few rows of one sequence and one head, block of keys by block of keys (FlashAttention: Dao et
// al., arXiv:2205.14135, algorithm 1). A row's result depends on its query and on the keys and values up to its own
// position, in blocks counted from position 0: never on the rows beside it or on what was cached before.
#pragma once

#include "kernels.h"
#include "elementary.h"

namespace rushlight::RUSHLIGHT_ISA {

// out[0 to kV vectors] += Σ_i a[i] · b[i][...]: each lane one chain in the order of i.
template <int kV>
RUSHLIGHT_INLINE void add_product(const float* a, int n, const float* b, size_t b_stride, float* out) {
  F32 acc[kV];
  for (int v = 0; v < kV; ++v) acc[v] = load<F32>(out + v * kLanes);
  for (int i = 0; i < n; ++i, b += b_stride) {
    const F32 ai = broadcast(a[i]);
    for (int v = 0; v < kV; ++v) acc[v] = fma(ai, load<F32>(b + v * kLanes), acc[v]);
  }
  for (int v = 0; v < kV; ++v) store(out + v * kLanes, acc[v]);
}

// The same for a row of n_out floats, a multiple of kLanes.
inline void add_product(const float* a, int n, const float* b, size_t b_stride, float* out, int n_out) {
  int at = 0;
  for (; at + 8 * kLanes <= n_out; at += 8 * kLanes) add_product<8>(a, n, b + at, b_stride, out + at);
  for (; at + 4 * kLanes <= n_out; at += 4 * kLanes) add_product<4>(a, n, b + at, b_stride, out + at);
  for (; at < n_out; at += kLanes) add_product<1>(a, n, b + at, b_stride, out + at);
}

inline void attention(const AttentionJob& job, int row_begin, int row_end, float* scratch) {
  const int head_dim = job.head_dim, width = static_cast<int>(job.value_stride);
  float* scores = scratch;           // kBlock
  float* most = scores + kBlock;     // the running maximum of each row's scores
  float* sum = most + kAttentionRows;
  float* o = sum + kAttentionRows;   // [row][width]: the running sum of values
  for (int row = row_begin; row < row_end; ++row) {
    most[row - row_begin] = -__builtin_inff();
    sum[row - row_begin] = 0;
    __builtin_memset(o + (row - row_begin) * width, 0, static_cast<size_t>(width) * 4);
  }

  const int last = job.position + row_end - 1;
  for (int block = 0; block * kBlock <= last; ++block) {
    const float* keys = job.keys + static_cast<size_t>(job.blocks[block]) * job.block_stride;
    const float* values = job.values + static_cast<size_t>(job.blocks[block]) * job.block_stride;
    for (int row = row_begin; row < row_end; ++row) {
      const int seen = job.position + row + 1 - block * kBlock;  // positions of the block up to the row's own
      if (seen <= 0) continue;
      const int n = seen < kBlock ? seen : kBlock;
      const int padded = (n + kLanes - 1) / kLanes * kLanes;
      const int local = row - row_begin;

      __builtin_memset(scores, 0, kBlock * 4);
      add_product(job.q + static_cast<size_t>(row) * job.q_stride, head_dim, keys, kBlock, scores, padded);
      F32 peak = broadcast(most[local]);
      for (int i = 0; i < padded; i += kLanes) {
        // What stands in a block after the row's position is another row's, or left from another sequence.
        const F32 score = select(lane_index() < n - i, load<F32>(scores + i) * job.scale, broadcast(-__builtin_inff()));
        store(scores + i, score);
        peak = max(score, peak);
      }
      const float new_most = reduce_max(peak);
      F32 total = {};
      for (int i = 0; i < padded; i += kLanes) {
        const F32 p = exp(load<F32>(scores + i) - new_most);
        store(scores + i, p);
        total += p;
      }
      const float rescale = exp(broadcast(most[local] - new_most))[0];
      most[local] = new_most;
      sum[local] = sum[local] * rescale + reduce_add(total);
      float* o_row = o + local * width;
      for (int i = 0; i < width; i += kLanes) store(o_row + i, load<F32>(o_row + i) * rescale);
      add_product(scores, n, values, job.value_stride, o_row, width);
    }
  }

  for (int row = row_begin; row < row_end; ++row) {
    const F32 divisor = broadcast(sum[row - row_begin]);
    const float* from = o + (row - row_begin) * width;
    float* to = job.out + static_cast<size_t>(row) * job.out_stride;
    for (int i = 0; i < head_dim; i += kLanes) {
      const int n = head_dim - i < kLanes ? head_dim - i : kLanes;
      store_n(to + i, load<F32>(from + i) / divisor, n);
    }
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
