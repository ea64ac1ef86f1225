// Causal attention of a few queries that read the same keys, one block of keys at a time (FlashAttention: Dao et al.,
// arXiv:2205.14135, algorithm 1). A result depends on its query and on the keys and values that it sees, in blocks
// counted from position 0: never on the queries computed next to it or on how the sequence was cut into steps.
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

// Stores NaN in place of infinity: softmax would take an infinite key for a very unlikely one, and hide the overflow.
template <class Element>
RUSHLIGHT_INLINE void store_finite(Element* to, F32 v) {
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
void store_kv(const float* k, const float* v, int head_dim, void* key, void* value) {
  auto* k_out = static_cast<Element*>(key);
  auto* v_out = static_cast<Element*>(value);
  for (int d = 0; d < head_dim; d += kLanes) {
    const int n = head_dim - d < kLanes ? head_dim - d : kLanes;
    const bool full = n == kLanes;
    Element lanes[kLanes];
    store_finite(lanes, full ? load<F32>(k + d) : load_n(k + d, n));
    for (int i = 0; i < n; ++i) k_out[(d + i) * kBlock] = lanes[i];
    store_finite(v_out + d, full ? load<F32>(v + d) : load_n(v + d, n));  // rows of values are padded to full vectors
  }
}

// The rows of the cache that are multiplied next, prefetched row by row: the hardware cannot predict where another
// block lies. With AVX-512 they go into the second-level cache, because the first has few places for lines under way
// (on Zen 4, half as fast). With less, floats saturate the memory bandwidth anyway, and are not prefetched.
template <class Element>
struct Next {
  const Element* rows = nullptr;
  size_t stride = 0;
  int n = 0;

  RUSHLIGHT_INLINE void prefetch(const Next& next, int i) {
    if ((kLanes < 16 && sizeof(Element) > 2) || i >= next.n) return;
    constexpr int kLocality = kLanes < 16 ? 3 : 2;
    const Element* row = next.rows + i * next.stride;
    for (int from = 0; from < kBlock; from += 64 / sizeof(Element)) {
      __builtin_prefetch(row + from, 0, kLocality);
    }
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
    Next<Element>::prefetch(next, i);
    if constexpr (kM == 1) {  // the sums and a row of b together would need more registers than there are
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
  constexpr int kFit = (kRegisters - 4) / kM < 8 ? (kRegisters - 4) / kM : 8;
  constexpr int kV = kFit > 4 && kFit < 8 && kLanes == 16 ? 4 : kFit;  // four are a block of 64, and most heads
  int at = 0;
  const auto add_vectors = [&]<int kVectors>() {
    if constexpr (kVectors <= kV) {
      for (; at + kVectors * kLanes <= n_out; at += kVectors * kLanes) {
        add_product<kM, kVectors>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride, next);
      }
    }
  };
  // As many as fit: the sums of a single vector would wait for one another's latency.
  add_vectors.template operator()<kV>();
  if constexpr (kV != 4) add_vectors.template operator()<4>();
  if constexpr (kV != 2) add_vectors.template operator()<2>();
  if constexpr (kV != 1) add_vectors.template operator()<1>();
}

// The part of a block that a query sees. Positions count from the block's first.
struct Visible {
  int begin, end;
  int own;      // the query's own position, which may lie in a later block
  float slope;  // of its head
};

// The blocks whose values are summed in one chain, counted from position 0. The sums of several such chains are added
// to a total: over thousands of positions, a single chain would round more than the sums of PyTorch do.
inline constexpr int kChainBlocks = 8;

// Running state of the softmax of each query.
struct Softmax {
  float* max_score;    // the maximum of its scores so far
  float* sum;          // of exp(score - max_score)
  float* total_scale;  // by which the total is to be multiplied, since the maximum has changed
  float* o;            // [query][value_stride]: the present chain's sum of exp(score - max_score) · value
  float* total;        // [query][value_stride]: the sum of the chains before

  // Adds the present chains of n queries to their totals, and begins new ones.
  void end_chains(int n, size_t stride) const {
    for (int i = 0; i < n; ++i) {
      const F32 scale = broadcast(total_scale[i]);
      for (size_t d = i * stride; d < (i + 1) * stride; d += kLanes) {
        store(total + d, fma(load<F32>(total + d), scale, load<F32>(o + d)));
      }
      total_scale[i] = 1;
    }
    __builtin_memset(o, 0, n * stride * sizeof(float));
  }
};

// Adds a block to kM queries, each of which sees a part of it. Queries are in the order of their positions.
template <int kM, class Element>
void attend(const AttentionJob& job, const float* q, const Element* keys, const Element* values, const Visible* visible,
            const Next<Element>& next_values, const Next<Element>& next_keys, float* scores, const Softmax& state) {
  const size_t stride = job.value_stride;
  const int width = static_cast<int>(stride);
  const int padded = (visible[kM - 1].end + kSumLanes - 1) / kSumLanes * kSumLanes;  // the last query sees the furthest
  constexpr float kZeros[kM] = {};
  __builtin_memset(scores, 0, sizeof(float) * kM * kBlock);
  add_product<kM>(q, stride, job.head_dim, keys, kBlock, kZeros, scores, kBlock, padded, next_values);
  // Of all queries side by side: the operations on one wait for each other.
  float max_score[kM], scale[kM];
  F32 falls = {};  // by which the queries' earlier maxima are exceeded, a lane each
  for (int m = 0; m < kM; ++m) {
    const Visible& part = visible[m];
    float* row = scores + m * kBlock;
    F32 peak = broadcast(state.max_score[m]);
    for (int i = 0; i < padded; i += kLanes) {
      F32 score = load<F32>(row + i) * job.scale;
      if (job.softcap > 0) score = tanh(score / job.softcap) * job.softcap;
      if (job.slopes != nullptr) score = fma(to_f32(lane_index() + (i - part.own)), broadcast(part.slope), score);
      // The other positions of the block are those of other rows, left from another sequence, or before the window.
      const I32 seen = (lane_index() >= part.begin - i) & (lane_index() < part.end - i);
      score = select(seen, score, broadcast(-__builtin_inff()));
      store(row + i, score);
      peak = max(score, peak);
    }
    max_score[m] = reduce_max(peak);
    falls[m] = state.max_score[m] - max_score[m];
  }
  falls = exp(falls);
  PartialSums total[kM];
  for (int i = 0; i < padded; i += kSumLanes) {
    for (int v = 0; v < kSumVectors; ++v) {
      for (int m = 0; m < kM; ++m) {
        float* row = scores + m * kBlock + i + v * kLanes;
        const F32 p = exp(load<F32>(row) - max_score[m]);
        store(row, p);
        total[m].of[v] += p;
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    scale[m] = falls[m];
    state.max_score[m] = max_score[m];
    state.total_scale[m] *= scale[m];
    state.sum[m] = state.sum[m] * scale[m] + reduce_add(total[m]);
  }

  // The positions that all queries see are multiplied together; what only some see, before and after, one query at a
  // time. A probability of 0 would not do: what lies outside may be NaN, and 0 · NaN is NaN.
  const auto add_values = [&](int m, int begin, int end, float rescale) {
    add_product<1>(scores + m * kBlock + begin, 0, end - begin, values + static_cast<size_t>(begin) * stride, stride,
                   &rescale, state.o + m * width, 0, width, Next<Element>{});
  };
  const int begin = visible[kM - 1].begin, end = begin < visible[0].end ? visible[0].end : begin;
  for (int m = 0; m < kM - 1; ++m) {
    if (visible[m].begin >= begin) continue;
    add_values(m, visible[m].begin, visible[m].end < begin ? visible[m].end : begin, scale[m]);
    scale[m] = 1.0f;
  }
  add_product<kM>(scores + begin, kBlock, end - begin, values + static_cast<size_t>(begin) * stride, stride, scale,
                  state.o, stride, width, next_keys);
  for (int m = 0; m < kM; ++m) {
    if (visible[m].end > end) add_values(m, end, visible[m].end, 1.0f);
  }
}

template <class Element>
void attention(const AttentionJob& job, int query_begin, int query_end, float* scratch) {
  const int n_queries = query_end - query_begin, head_dim = job.head_dim, group = job.group;
  const size_t stride = job.value_stride;
  float* scores = scratch;                           // [kTogether][kBlock]
  float* q = scores + kTogether * kBlock;            // [query][value_stride]: heads that lie apart, put side by side
  float* state = q + kAttentionQueries * stride;
  const Softmax softmax = {state, state + kAttentionQueries, state + 2 * kAttentionQueries,
                           state + 3 * kAttentionQueries, state + (stride + 3) * kAttentionQueries};
  for (int i = 0; i < n_queries; ++i) {
    const int row = (query_begin + i) / group, head = (query_begin + i) % group;
    const float* from = job.q + static_cast<size_t>(row) * job.q_stride + static_cast<size_t>(head) * head_dim;
    __builtin_memcpy(q + i * stride, from, static_cast<size_t>(head_dim) * sizeof(float));
    softmax.max_score[i] = -__builtin_inff();
    softmax.sum[i] = 0;
    softmax.total_scale[i] = 1;
  }
  __builtin_memset(softmax.o, 0, n_queries * stride * sizeof(float));
  __builtin_memset(softmax.total, 0, n_queries * stride * sizeof(float));

  const auto block_of = [&](const void* base, int block) {
    return static_cast<const Element*>(base) + static_cast<size_t>(job.blocks[block]) * job.block_stride;
  };
  const auto position_of = [&](int query) { return job.position + query / group; };
  const auto first_seen = [&](int query) {
    const int first = position_of(query) - (job.window - 1);
    return first > 0 ? first : 0;
  };
  constexpr decltype(&attend<1, Element>) kAttend[] = {attend<1, Element>, attend<2, Element>, attend<3, Element>,
                                                       attend<4, Element>};
  static_assert(sizeof kAttend / sizeof *kAttend == kTogether);
  const int last = position_of(query_end - 1);
  for (int block = first_seen(query_begin) / kBlock; block * kBlock <= last; ++block) {
    const int start = block * kBlock;
    const Element* keys = block_of(job.keys, block);
    const Element* values = block_of(job.values, block);
    bool first = true;
    for (int query = query_begin; query < query_end;) {
      if (position_of(query) < start) {  // it ends before the block
        ++query;
        continue;
      }
      if (first_seen(query) >= start + kBlock) break;  // its window, and those of later ones, begin after the block
      Visible visible[kTogether];
      int m = 0;
      for (; m < kTogether && query + m < query_end && first_seen(query + m) < start + kBlock; ++m) {
        const int own = position_of(query + m) - start, from = first_seen(query + m) - start;
        const float slope = job.slopes == nullptr ? 0 : job.slopes[(query + m) % group];
        visible[m] = {from > 0 ? from : 0, own + 1 < kBlock ? own + 1 : kBlock, own, slope};
      }
      Next<Element> next_values, next_keys;
      if (first) {
        const int begin = visible[0].begin;
        next_values = {values + static_cast<size_t>(begin) * stride, stride, visible[0].end - begin};
        if (start + kBlock <= last) next_keys = {block_of(job.keys, block + 1), kBlock, head_dim};
      }
      const int i = query - query_begin;
      kAttend[m - 1](job, q + i * stride, keys, values, visible, next_values, next_keys, scores,
                     {softmax.max_score + i, softmax.sum + i, softmax.total_scale + i, softmax.o + i * stride,
                      softmax.total + i * stride});
      first = false;
      query += m;
    }
    if ((block + 1) % kChainBlocks == 0) softmax.end_chains(n_queries, stride);
  }
  softmax.end_chains(n_queries, stride);

  for (int i = 0; i < n_queries; ++i) {
    const int row = (query_begin + i) / group, head = (query_begin + i) % group;
    const F32 divisor = broadcast(softmax.sum[i]);
    const float* from = softmax.total + i * stride;
    float* to = job.out + static_cast<size_t>(row) * job.out_stride + static_cast<size_t>(head) * head_dim;
    for (int d = 0; d < head_dim; d += kLanes) {
      const int n = head_dim - d < kLanes ? head_dim - d : kLanes;
      store_n(to + d, load<F32>(from + d) / divisor, n);
    }
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
