// Causal attention of a few rows of one sequence and one head, block of keys by block of keys (FlashAttention: Dao et
// al., arXiv:2205.14135, algorithm 1). A row's result depends on its query and on the keys and values up to its own
// position, in blocks counted from position 0: never on the rows beside it or on what was cached before.
#pragma once

#include "kernels.h"
#include "elementary.h"

namespace rushlight::RUSHLIGHT_ISA {

// out[m][0 to kV vectors] = out[m] · scale[m] + Σ_i a[m][i] · b[i] for kM rows: each lane one chain in the order of i.
template <int kM, int kV>
RUSHLIGHT_INLINE void add_product(const float* a, size_t a_stride, int n, const float* b, size_t b_stride,
                                  const float* scale, float* out, size_t out_stride) {
  F32 acc[kM][kV];
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kV; ++v) acc[m][v] = load<F32>(out + m * out_stride + v * kLanes) * scale[m];
  }
  for (int i = 0; i < n; ++i, b += b_stride) {
    F32 row[kV];
    for (int v = 0; v < kV; ++v) row[v] = load<F32>(b + v * kLanes);
    for (int m = 0; m < kM; ++m) {
      const F32 ai = broadcast(a[m * a_stride + i]);
      for (int v = 0; v < kV; ++v) acc[m][v] = fma(ai, row[v], acc[m][v]);
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kV; ++v) store(out + m * out_stride + v * kLanes, acc[m][v]);
  }
}

// The same for rows of n_out floats, a multiple of kLanes.
template <int kM>
void add_product(const float* a, size_t a_stride, int n, const float* b, size_t b_stride, const float* scale,
                 float* out, size_t out_stride, int n_out) {
  constexpr int kV = (kRegisters - 4) / kM < 8 ? (kRegisters - 4) / kM : 8;
  int at = 0;
  for (; at + kV * kLanes <= n_out; at += kV * kLanes) {
    add_product<kM, kV>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride);
  }
  if constexpr (kV > 2) {
    for (; at + 2 * kLanes <= n_out; at += 2 * kLanes) {
      add_product<kM, 2>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride);
    }
  }
  for (; at < n_out; at += kLanes) add_product<kM, 1>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride);
}

// What a block adds to kM rows that all see some of it: its first n[m] positions.
template <int kM>
void attend(const float* q, size_t q_stride, const float* keys, const float* values, size_t value_stride, int head_dim,
            float scale, const int* n, float* scores, float* most, float* sum, float* o, int width) {
  const auto padded = [&](int m) { return (n[m] + kLanes - 1) / kLanes * kLanes; };
  constexpr float kZeros[kM] = {};
  __builtin_memset(scores, 0, sizeof(float) * kM * kBlock);
  add_product<kM>(q, q_stride, head_dim, keys, kBlock, kZeros, scores, kBlock, padded(kM - 1));
  float rescale[kM];
  for (int m = 0; m < kM; ++m) {
    float* row = scores + m * kBlock;
    F32 peak = broadcast(most[m]);
    for (int i = 0; i < padded(m); i += kLanes) {
      // What stands in a block after the row's position is another row's, or left from another sequence.
      const F32 score = select(lane_index() < n[m] - i, load<F32>(row + i) * scale, broadcast(-__builtin_inff()));
      store(row + i, score);
      peak = max(score, peak);
    }
    const float new_most = reduce_max(peak);
    F32 total = {};
    for (int i = 0; i < padded(m); i += kLanes) {
      const F32 p = exp(load<F32>(row + i) - new_most);
      store(row + i, p);
      total += p;
    }
    rescale[m] = exp(broadcast(most[m] - new_most))[0];
    most[m] = new_most;
    sum[m] = sum[m] * rescale[m] + reduce_add(total);
  }
  // Of the first row's positions all rows see each; later ones have a few more.
  add_product<kM>(scores, kBlock, n[0], values, value_stride, rescale, o, static_cast<size_t>(width), width);
  constexpr float kOne = 1.0f;
  for (int m = 1; m < kM; ++m) {
    add_product<1>(scores + m * kBlock + n[0], 0, n[m] - n[0], values + static_cast<size_t>(n[0]) * value_stride,
                   value_stride, &kOne, o + m * width, 0, width);
  }
}

inline void attention(const AttentionJob& job, int row_begin, int row_end, float* scratch) {
  const int head_dim = job.head_dim, width = static_cast<int>(job.value_stride);
  float* scores = scratch;                    // [kBeside][kBlock]
  float* most = scores + kBeside * kBlock;    // the running maximum of each row's scores
  float* sum = most + kAttentionRows;
  float* o = sum + kAttentionRows;            // [row][width]: the running sum of values
  for (int row = row_begin; row < row_end; ++row) {
    most[row - row_begin] = -__builtin_inff();
    sum[row - row_begin] = 0;
    __builtin_memset(o + (row - row_begin) * width, 0, static_cast<size_t>(width) * 4);
  }

  const int last = job.position + row_end - 1;
  for (int block = 0; block * kBlock <= last; ++block) {
    const float* keys = job.keys + static_cast<size_t>(job.blocks[block]) * job.block_stride;
    const float* values = job.values + static_cast<size_t>(job.blocks[block]) * job.block_stride;
    const int before = block * kBlock - job.position;  // rows that end before the block
    for (int row = row_begin > before ? row_begin : before; row < row_end;) {
      const int local = row - row_begin, m = row_end - row < kBeside ? 1 : kBeside;
      int n[kBeside];  // positions of the block up to the row's own
      for (int i = 0; i < m; ++i) n[i] = row + i + 1 - before < kBlock ? row + i + 1 - before : kBlock;
      const auto run = m == 1 ? attend<1> : attend<kBeside>;
      run(job.q + static_cast<size_t>(row) * job.q_stride, job.q_stride, keys, values, job.value_stride, head_dim,
          job.scale, n, scores, most + local, sum + local, o + local * width, width);
      row += m;
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
