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

// The elements of the cache that are multiplied next, prefetched as the present ones are multiplied: the hardware cannot
// predict where another block lies. With AVX-512 they go into the second-level cache, because the first has few places
// for lines under way (on Zen 4, half as fast). With AVX2, floats saturate the memory bandwidth anyway, and are not
// prefetched. Processors with AMX follow floats by themselves within a page, once its first lines are asked for; to ask
// for all costs more time than it saves. Of halves they want all, and in the first-level cache.
template <class Element>
struct Next {
  const Element* from = nullptr;
  size_t n = 0;

  static constexpr bool kHalf = sizeof(Element) == 2;
  static constexpr bool kPages = kHasAMX && !kHalf;
  static constexpr bool kLines = kHalf || (kLanes == 16 && !kHasAMX);
  static constexpr int kLocality = kLanes < 16 || (kHasAMX && kHalf) ? 3 : 2;
  static constexpr size_t kLine = 64 / sizeof(Element);

  // Before the product: the first lines of each page of 4 KiB.
  RUSHLIGHT_INLINE void prefetch_pages(const Next& next) {
    for (size_t page = 0; kPages && page < next.n; page += 64 * kLine) {
      for (size_t at = page; at < page + 4 * kLine && at < next.n; at += kLine) {
        __builtin_prefetch(next.from + at, 0, kLocality);
      }
    }
  }

  // Within the product: kElements elements from `at` on.
  template <size_t kElements>
  RUSHLIGHT_INLINE void prefetch(const Next& next, size_t at) {
    if (!kLines || at >= next.n) return;
    for (size_t i = 0; i < kElements; i += kLine) __builtin_prefetch(next.from + at + i, 0, kLocality);
  }
};

// out[m][0 to kV vectors] = out[m] · scale[m] + Σ_i a[m][i] · b[i] for kM rows: each lane one chain in the order of i.
// Without scales, out is not read. The element `at` of `next` and as many as are multiplied are prefetched.
template <int kM, int kV, class Element>
RUSHLIGHT_INLINE void add_product(const float* a, size_t a_stride, int n, const Element* b, size_t b_stride,
                                  const float* scale, float* out, size_t out_stride, const Next<Element>& next,
                                  size_t at) {
  F32 acc[kM][kV] = {};
  if (scale != nullptr) {
    for (int m = 0; m < kM; ++m) {
      for (int v = 0; v < kV; ++v) acc[m][v] = load<F32>(out + m * out_stride + v * kLanes) * scale[m];
    }
  }
  for (int i = 0; i < n; ++i, b += b_stride, at += kV * kLanes) {
    Next<Element>::template prefetch<kV * kLanes>(next, at);
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
  Next<Element>::prefetch_pages(next);
  int at = 0;
  const auto add_vectors = [&]<int kVectors>() {
    if constexpr (kVectors <= kV) {
      for (; at + kVectors * kLanes <= n_out; at += kVectors * kLanes) {
        add_product<kM, kVectors>(a, a_stride, n, b + at, b_stride, scale, out + at, out_stride, next,
                                  static_cast<size_t>(at) * static_cast<size_t>(n));
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

// The softmax of queries over some positions.
struct Softmax {
  float* max_score;  // [kAttentionQueries]: the maximum of a query's scores
  float* sum;        // [kAttentionQueries]: of exp(score - max_score)
  float* o;          // [query][value_stride]: the sum of exp(score - max_score) · value

  explicit Softmax(float* state)
      : max_score(state), sum(state + kAttentionQueries), o(state + 2 * kAttentionQueries) {}

  // That of no position, for n queries. The least float as the maximum, not infinity: differences of maxima are finite.
  void clear(int n, size_t stride) const {
    for (int i = 0; i < n; ++i) max_score[i] = -kMaxFloat, sum[i] = 0;
    __builtin_memset(o, 0, n * stride * sizeof(float));
  }

  // Query i becomes that of a chain.
  void copy(const Softmax& chain, int i, size_t stride) const {
    max_score[i] = chain.max_score[i], sum[i] = chain.sum[i];
    __builtin_memcpy(o + i * stride, chain.o + i * stride, stride * sizeof(float));
  }

  // Adds query i of a later chain.
  void add(const Softmax& chain, int i, size_t stride) const {
    const float most = max_score[i] > chain.max_score[i] ? max_score[i] : chain.max_score[i];
    F32 scales = {};
    scales[0] = max_score[i] - most, scales[1] = chain.max_score[i] - most;
    scales = exp_nonpositive(scales);
    max_score[i] = most;
    sum[i] = sum[i] * scales[0] + chain.sum[i] * scales[1];
    const F32 scale = broadcast(scales[0]), scale_of_chain = broadcast(scales[1]);
    for (size_t d = i * stride; d < (i + 1) * stride; d += kLanes) {
      store(o + d, fma(load<F32>(o + d), scale, load<F32>(chain.o + d) * scale_of_chain));
    }
  }

 private:
  static constexpr float kMaxFloat = __FLT_MAX__;
};

// Adds a block to kM queries, each of which sees a part of it. Queries are in the order of their positions.
template <int kM, class Element>
void attend(const AttentionJob& job, const float* q, const Element* keys, const Element* values, const Visible* visible,
            const Next<Element>& next_values, const Next<Element>& next_keys, float* scores, float* max_scores,
            float* sums, float* o) {
  const size_t stride = job.value_stride;
  const int width = static_cast<int>(stride);
  const int padded = (visible[kM - 1].end + kSumLanes - 1) / kSumLanes * kSumLanes;  // the last query sees the furthest
  add_product<kM>(q, stride, job.head_dim, keys, kBlock, nullptr, scores, kBlock, padded, next_values);
  // Of all queries side by side: the operations on one wait for each other.
  float max_score[kM], scale[kM];
  F32 falls[(kM + kLanes - 1) / kLanes] = {};  // by which the queries' earlier maxima are exceeded, a lane each
  for (int m = 0; m < kM; ++m) {
    const Visible& part = visible[m];
    float* row = scores + m * kBlock;
    F32 peak = broadcast(max_scores[m]);
    for (int i = 0; i < padded; i += kLanes) {
      F32 score = load<F32>(row + i) * job.scale;
      if (job.softcap > 0) score = tanh(score / job.softcap) * job.softcap;
      if (job.slopes != nullptr) score = fma(to_f32(lane_index() + (i - part.own)), broadcast(part.slope), score);
      // The other positions of the block are those of other rows, left from another sequence, or before the window.
      if (part.begin > 0 || part.end < kBlock) {
        const I32 seen = (lane_index() >= part.begin - i) & (lane_index() < part.end - i);
        score = select(seen, score, broadcast(-__builtin_inff()));
      }
      store(row + i, score);
      peak = max(score, peak);
    }
    max_score[m] = reduce_max(peak);
    falls[m / kLanes][m % kLanes] = max_scores[m] - max_score[m];
  }
  for (F32& fall : falls) fall = exp_nonpositive(fall);
  PartialSums total[kM];
  for (int i = 0; i < padded; i += kSumLanes) {
    for (int v = 0; v < kSumVectors; ++v) {
      for (int m = 0; m < kM; ++m) {
        float* row = scores + m * kBlock + i + v * kLanes;
        const F32 p = exp_nonpositive(load<F32>(row) - max_score[m]);
        store(row, p);
        total[m].of[v] += p;
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    scale[m] = falls[m / kLanes][m % kLanes];
    max_scores[m] = max_score[m];
    sums[m] = sums[m] * scale[m] + reduce_add(total[m]);
  }

  // The positions that all queries see are multiplied together; what only some see, before and after, one query at a
  // time. A probability of 0 would not do: what lies outside may be NaN, and 0 · NaN is NaN.
  const auto add_values = [&](int m, int begin, int end, float rescale) {
    add_product<1>(scores + m * kBlock + begin, 0, end - begin, values + static_cast<size_t>(begin) * stride, stride,
                   &rescale, o + m * width, 0, width, Next<Element>{});
  };
  const int begin = visible[kM - 1].begin, end = begin < visible[0].end ? visible[0].end : begin;
  for (int m = 0; m < kM - 1; ++m) {
    if (visible[m].begin >= begin) continue;
    add_values(m, visible[m].begin, visible[m].end < begin ? visible[m].end : begin, scale[m]);
    scale[m] = 1.0f;
  }
  add_product<kM>(scores + begin, kBlock, end - begin, values + static_cast<size_t>(begin) * stride, stride, scale,
                  o, stride, width, next_keys);
  for (int m = 0; m < kM; ++m) {
    if (visible[m].end > end) add_values(m, end, visible[m].end, 1.0f);
  }
}

// The positions that a query sees.
struct Seen {
  const AttentionJob& job;

  int last(int query) const { return job.position + query / job.group; }
  int first(int query) const {
    const int first = last(query) - (job.window - 1);
    return first > 0 ? first : 0;
  }
  int first_chain(int query) const { return first(query) / kChain; }
  int last_chain(int query) const { return last(query) / kChain; }
};

// The queries, whose heads lie apart, put side by side: [query][value_stride].
inline void gather_queries(const AttentionJob& job, int query_begin, int query_end, float* q) {
  for (int query = query_begin; query < query_end; ++query, q += job.value_stride) {
    const int row = query / job.group, head = query % job.group;
    __builtin_memcpy(q, job.q + static_cast<size_t>(row) * job.q_stride + static_cast<size_t>(head) * job.head_dim,
                     static_cast<size_t>(job.head_dim) * sizeof(float));
  }
}

// The softmax of queries over the positions of one chain.
template <class Element>
void attend_chain(const AttentionJob& job, int query_begin, int query_end, int chain, const float* q, float* scores,
                  const Softmax& softmax) {
  const size_t stride = job.value_stride;
  softmax.clear(query_end - query_begin, stride);
  const auto block_of = [&](const void* base, int block) {
    return static_cast<const Element*>(base) + static_cast<size_t>(job.blocks[block]) * job.block_stride;
  };
  constexpr decltype(&attend<1, Element>) kAttend[] = {attend<1, Element>, attend<2, Element>, attend<3, Element>,
                                                       attend<4, Element>, attend<5, Element>, attend<6, Element>};
  static_assert(sizeof kAttend / sizeof *kAttend == kTogether);
  const Seen seen = {job};
  const int last = seen.last(query_end - 1), first_block = seen.first(query_begin) / kBlock;
  int block = chain * kChainBlocks;
  const int end = block + kChainBlocks;
  for (block = block > first_block ? block : first_block; block < end && block * kBlock <= last; ++block) {
    const int start = block * kBlock;
    const Element* keys = block_of(job.keys, block);
    const Element* values = block_of(job.values, block);
    bool first = true;
    for (int query = query_begin; query < query_end;) {
      if (seen.last(query) < start) {  // it ends before the block
        ++query;
        continue;
      }
      if (seen.first(query) >= start + kBlock) break;  // its window, and those of later ones, begin after the block
      Visible visible[kTogether];
      int m = 0;
      for (; m < kTogether && query + m < query_end && seen.first(query + m) < start + kBlock; ++m) {
        const int own = seen.last(query + m) - start, from = seen.first(query + m) - start;
        const float slope = job.slopes == nullptr ? 0 : job.slopes[(query + m) % job.group];
        visible[m] = {from > 0 ? from : 0, own + 1 < kBlock ? own + 1 : kBlock, own, slope};
      }
      Next<Element> next_values, next_keys;
      if (first) {
        const int begin = visible[0].begin;
        next_values = {values + static_cast<size_t>(begin) * stride,
                       static_cast<size_t>(visible[0].end - begin) * stride};
        if (start + kBlock <= last) next_keys = {block_of(job.keys, block + 1), static_cast<size_t>(job.head_dim) * kBlock};
      }
      const int i = query - query_begin;
      kAttend[m - 1](job, q + i * stride, keys, values, visible, next_values, next_keys, scores, softmax.max_score + i,
                     softmax.sum + i, softmax.o + i * stride);
      first = false;
      query += m;
    }
  }
}

// Adds a chain to the total of those before it that a query sees.
inline void add_chain(const AttentionJob& job, int query_begin, int query_end, int chain, const Softmax& of_chain,
                      const Softmax& total) {
  const Seen seen = {job};
  for (int query = query_begin; query < query_end; ++query) {
    if (seen.first_chain(query) == chain) {
      total.copy(of_chain, query - query_begin, job.value_stride);
    } else if (seen.first_chain(query) < chain && chain <= seen.last_chain(query)) {
      total.add(of_chain, query - query_begin, job.value_stride);
    }
  }
}

inline void write_attention(const AttentionJob& job, int query_begin, int query_end, const Softmax& total) {
  for (int query = query_begin; query < query_end; ++query) {
    const int row = query / job.group, head = query % job.group, i = query - query_begin;
    const F32 divisor = broadcast(total.sum[i]);
    const float* from = total.o + i * job.value_stride;
    float* to = job.out + static_cast<size_t>(row) * job.out_stride + static_cast<size_t>(head) * job.head_dim;
    for (int d = 0; d < job.head_dim; d += kLanes) {
      const int n = job.head_dim - d < kLanes ? job.head_dim - d : kLanes;
      store_n(to + d, load<F32>(from + d) / divisor, n);
    }
  }
}

// Chains are added in the order of their positions, whichever thread computed them.
template <class Element>
struct Attention {
  static void run(const AttentionJob& job, int query_begin, int query_end, float* scratch) {
    float* q = scratch + kTogether * kBlock;
    const Softmax total(q + kAttentionQueries * job.value_stride);
    const Softmax of_chain(total.o + kAttentionQueries * job.value_stride);
    gather_queries(job, query_begin, query_end, q);
    const Seen seen = {job};
    const int first = seen.first_chain(query_begin), last = seen.last_chain(query_end - 1);
    attend_chain<Element>(job, query_begin, query_end, first, q, scratch, total);
    for (int chain = first + 1; chain <= last; ++chain) {
      attend_chain<Element>(job, query_begin, query_end, chain, q, scratch, of_chain);
      add_chain(job, query_begin, query_end, chain, of_chain, total);
    }
    write_attention(job, query_begin, query_end, total);
  }

  static void run_chain(const AttentionJob& job, int query_begin, int query_end, int chain, float* state,
                        float* scratch) {
    float* q = scratch + kTogether * kBlock;
    gather_queries(job, query_begin, query_end, q);
    attend_chain<Element>(job, query_begin, query_end, chain, q, scratch, Softmax(state));
  }

  static void merge(const AttentionJob& job, int query_begin, int query_end, int first_chain, int n_chains,
                    float* states, size_t states_step, float* scratch) {
    const Softmax total(scratch);
    for (int i = 0; i < n_chains; ++i) {
      add_chain(job, query_begin, query_end, first_chain + i, Softmax(states + i * states_step), total);
    }
    write_attention(job, query_begin, query_end, total);
  }
};

}  // namespace rushlight::RUSHLIGHT_ISA
