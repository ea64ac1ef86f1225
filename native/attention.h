// Causal attention of a few rows of one sequence and one head, block of keys by block of keys (FlashAttention: Dao et
// al., arXiv:2205.14135, algorithm 1). A row's result depends on its query and on the keys and values up to its own
// position, in blocks counted from position 0: never on the rows beside it or on what was cached before.
#pragma once

#include "kernels.h"
#include "elementary.h"

namespace rushlight::RUSHLIGHT_ISA {

// The elements of a cache in f16.
struct Half {
  uint16_t bits;
};

RUSHLIGHT_INLINE F32 widened(const float* from) { return load<F32>(from); }
RUSHLIGHT_INLINE F32 widened(const Half* from) { return load_f16(from); }

// NaN for what would be infinite: softmax would take an infinite key for a very unlikely one, and nobody would know.
template <class Element>
RUSHLIGHT_INLINE void keep_vector(Element* to, F32 v) {
  constexpr bool kHalf = __is_same(Element, Half);
  constexpr float kBeyond = kHalf ? 65520.0f : __builtin_inff();  // the least magnitude that rounds to infinity
  v = select(abs(v) < kBeyond, v, broadcast(__builtin_nanf("")));
  if constexpr (kHalf) {
    store_f16(to, v);
  } else {
    store(to, v);
  }
}

template <class Element>
void keep(const float* k, const float* v, int head_dim, void* key, void* value) {
  auto* k_out = static_cast<Element*>(key);
  auto* v_out = static_cast<Element*>(value);
  for (int d = 0; d < head_dim; d += kLanes) {
    const int n = head_dim - d < kLanes ? head_dim - d : kLanes;
    const bool whole = n == kLanes;
    Element lanes[kLanes];
    keep_vector(lanes, whole ? load<F32>(k + d) : load_n(k + d, n));
    for (int i = 0; i < n; ++i) k_out[(d + i) * kBlock] = lanes[i];
    keep_vector(v_out + d, whole ? load<F32>(v + d) : load_n(v + d, n));  // rows of values are padded to whole vectors
  }
}

// Rows of the cache that are multiplied next. A query alone asks for them as it goes: nothing foresees where another
// block lies. Floats are as many as memory can give anyway, and are not asked for.
template <class Element>
struct Next {
  const Element* rows = nullptr;
  size_t stride = 0;
  int n = 0;

  RUSHLIGHT_INLINE void fetch(const Next& next, int i) {
    if (sizeof(Element) > 2 || i >= next.n) return;
    const Element* row = next.rows + i * next.stride;
    for (int from = 0; from < kBlock; from += 64 / sizeof(Element)) __builtin_prefetch(row + from);
  }
};

// out[m][0 to kV vectors] = out[m] · scale[m] + Σ_i a[m][i] · b[i] for kM rows: each lane one chain in the order of i.
template <int kM, int kV, class Element>
RUSHLIGHT_INLINE void add_product(const float* a, size_t a_stride, int n, const Element* b, size_t b_stride,
                                  const float* scale, float* out, size_t out_stride, const Next<Element>& next) {
  F32 acc[kM][kV];
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kV; ++v) acc[m][v] = load<F32>(out + m * out_stride + v * kLanes) * scale[m];
  }
  for (int i = 0; i < n; ++i, b += b_stride) {
    if constexpr (kM == 1) {  // sums and a whole row beside them would be more than the registers hold
      Next<Element>::fetch(next, i);
      const F32 ai = broadcast(a[i]);
      for (int v = 0; v < kV; ++v) acc[0][v] = fma(ai, widened(b + v * kLanes), acc[0][v]);
    } else {
      F32 row[kV];
      for (int v = 0; v < kV; ++v) row[v] = widened(b + v * kLanes);
      for (int m = 0; m < kM; ++m) {
        const F32 ai = broadcast(a[m * a_stride + i]);
        for (int v = 0; v < kV; ++v) acc[m][v] = fma(ai, row[v], acc[m][v]);
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kV; ++v) store(out + m * out_stride + v * kLanes, acc[m][v]);
  }
}

// The same for rows of n_out elements, a multiple of kLanes.
template <int kM, class Element>
void add_product(const float* a, size_t a_stride, int n, const Element* b, size_t b_stride, const float* scale,
                 float* out, size_t out_stride, int n_out, const Next<Element>& next) {
  constexpr int kV = (kRegisters - 4) / kM < 8 ? (kRegisters - 4) / kM : 8;
  int at = 0;
  for (; at + kV * kLanes <= n_out; at += kV * kLanes) {
    add_product<kM, kV>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride, next);
  }
  if constexpr (kV > 2) {
    for (; at + 2 * kLanes <= n_out; at += 2 * kLanes) {
      add_product<kM, 2>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride, next);
    }
  }
  for (; at < n_out; at += kLanes) {
    add_product<kM, 1>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride, next);
  }
}

// What a block adds to kM rows that all see some of it: its first n[m] positions. The keys of another block are next.
template <int kM, class Element>
void attend(const float* q, size_t q_stride, const Element* keys, const Element* values, size_t value_stride,
            const Next<Element>& next_keys, int head_dim, float scale, const int* n, float* scores, float* most,
            float* sum, float* o, int width) {
  const auto padded = [&](int m) { return (n[m] + kLanes - 1) / kLanes * kLanes; };
  constexpr float kZeros[kM] = {};
  __builtin_memset(scores, 0, sizeof(float) * kM * kBlock);
  const Next<Element> next_values = {values, value_stride, n[0]};
  add_product<kM>(q, q_stride, head_dim, keys, kBlock, kZeros, scores, kBlock, padded(kM - 1), next_values);
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
    PartialSums total;
    for (int i = 0; i < n[m]; i += kSumLanes) {
      for (int v = 0; v < kSumVectors && i + v * kLanes < n[m]; ++v) {
        const F32 p = exp(load<F32>(row + i + v * kLanes) - new_most);
        store(row + i + v * kLanes, p);
        total.of[v] += p;
      }
    }
    rescale[m] = exp(broadcast(most[m] - new_most))[0];
    most[m] = new_most;
    sum[m] = sum[m] * rescale[m] + reduce_add(total);
  }
  // Of the first row's positions all rows see each; later ones have a few more.
  add_product<kM>(scores, kBlock, n[0], values, value_stride, rescale, o, static_cast<size_t>(width), width, next_keys);
  constexpr float kOne = 1.0f;
  for (int m = 1; m < kM; ++m) {
    add_product<1>(scores + m * kBlock + n[0], 0, n[m] - n[0], values + static_cast<size_t>(n[0]) * value_stride,
                   value_stride, &kOne, o + m * width, 0, width, Next<Element>{});
  }
}

template <class Element>
void attention(const AttentionJob& job, int row_begin, int row_end, float* scratch) {
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

  const auto keys_of = [&](int block) {
    return static_cast<const Element*>(job.keys) + static_cast<size_t>(job.blocks[block]) * job.block_stride;
  };
  const int last = job.position + row_end - 1;
  for (int block = 0; block * kBlock <= last; ++block) {
    const Element* keys = keys_of(block);
    const Element* values =
        static_cast<const Element*>(job.values) + static_cast<size_t>(job.blocks[block]) * job.block_stride;
    Next<Element> next_keys;
    if ((block + 1) * kBlock <= last) next_keys = {keys_of(block + 1), kBlock, head_dim};
    const int before = block * kBlock - job.position;  // rows that end before the block
    for (int row = row_begin > before ? row_begin : before; row < row_end;) {
      const int local = row - row_begin, m = row_end - row < kBeside ? 1 : kBeside;
      int n[kBeside];  // positions of the block up to the row's own
      for (int i = 0; i < m; ++i) n[i] = row + i + 1 - before < kBlock ? row + i + 1 - before : kBlock;
      const auto run = m == 1 ? attend<1, Element> : attend<kBeside, Element>;
      run(job.q + static_cast<size_t>(row) * job.q_stride, job.q_stride, keys, values, job.value_stride, next_keys,
          head_dim, job.scale, n, scores, most + local, sum + local, o + local * width, width);
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
