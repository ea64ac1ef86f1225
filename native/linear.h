// x W for one row or many, over packed panels.
//
// Every output is one lane, and its sum over k is one chain of additions in the order of k. How many rows are computed
// side by side, and where a long k is cut, changes neither the operands nor the order: one row alone has the same bits.
#pragma once

#include <utility>

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kVectors = kPanel / kLanes;  // in a panel's row of outputs

// How far ahead of a single pass memory is asked. Where the hardware's own prefetcher keeps up with the memory (Zen 3),
// it only has to be helped from the second-level cache to the first, the later the less is computed with a byte; where it
// does not (Zen 4, measured with the prototypes of these kernels), memory itself has to be asked in time.
template <Format kFormat>
inline constexpr size_t kPrefetchBytes = kLanes == 16 ? 4096 : kFormat == Format::kF32 ? 256 : 640;

template <Format kFormat, size_t kBytes>
RUSHLIGHT_INLINE void prefetch(const uint8_t* w) {
  for (size_t i = 0; i < kBytes; i += 64) __builtin_prefetch(w + kPrefetchBytes<kFormat> + i, 0, 3);
}

// How many groups of rows pass a block of weights one after another.
enum class Groups : uint8_t { kOne, kFew, kMany };

inline constexpr int kFewGroups = 3;

// What one of several passes over a block fetches: its share of the block that comes next, so that the memory works while
// the processor does. Of few groups each has much to fetch in little time: small blocks come to the first-level cache, a
// line now and then, since whatever misses that cache waits for a place among what is under way from memory. Many have
// time: large blocks come to the second level.
struct Ahead {
  const uint8_t* from;  // in the first tile
  size_t bytes;         // of each tile

  template <Groups kGroups>
  RUSHLIGHT_INLINE void fetch(const Ahead& ahead, size_t offset) {
    for (size_t i = 0; i < ahead.bytes; i += 64) {
      __builtin_prefetch(ahead.from + offset + i, 0, kGroups == Groups::kFew ? 3 : 2);
    }
  }
};

// Bytes of weights in a block that few groups pass.
inline constexpr size_t kFewBlockBytes = 4096;

// The most vectors of a panel whose sums, for so many rows, fit in so many registers.
constexpr int strip_of(int rows, int registers) {
  int strip = kVectors;
  while (strip > 1 && strip * rows > registers) strip /= 2;
  return strip;
}

// A format's kernel provides
//     kRows     rows side by side, as many as the registers hold
//     kBlockK   inputs to a block that many rows pass: its weights stay in the first-level cache meanwhile
//     XTile     what a row's 32 activations are stored in
//     kStrip    vectors of outputs that are computed at a time for kM rows
//     run       acc[m][s] += x[m][0 to n_k] W of the outputs from vector v on

// Floats times f32, f16 and bf16: one input at a time.
template <Format kFormat>
struct Plain {
  static constexpr int kRows = (kRegisters - 4) / 2;
  static constexpr int kBlockK = 192;
  using XTile = float[kTile];

  // Beside the sums wait activations or, of many rows, the weights of two vectors, then one of the other side, and what
  // bf16 is masked with.
  template <int kM>
  static constexpr int kStrip = strip_of(kM, kRegisters - (kM < 4 ? kM : 2) - 1 - (kFormat == Format::kBF16 ? 1 : 0));

  template <Groups kGroups, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int v, const uint8_t* x, size_t x_stride, int n_k, const Ahead& ahead,
                            F32 (&acc)[kM][kS]) {
    constexpr size_t kBytes = kTileBytes[static_cast<int>(kFormat)];
    constexpr int kStep = kFormat == Format::kBF16 ? 2 : 1;  // inputs that lie together
    constexpr size_t kStepBytes = kBytes / kTile * kStep;
    w += static_cast<size_t>(v) * kStepBytes / kVectors;
    for (size_t fetched = 0; n_k > 0; n_k -= kTile, fetched += kBytes, x += sizeof(XTile)) {
      if constexpr (kGroups == Groups::kMany) Ahead::fetch<kGroups>(ahead, fetched);
      const int n = n_k < kTile ? n_k : kTile;
      int k = 0;
      if constexpr (kGroups == Groups::kFew) {
        for (size_t i = 0; i < ahead.bytes && k + kStep <= n; i += 64, k += kStep, w += kStepBytes) {
          Ahead::fetch<kGroups>({ahead.from + fetched + i, 64}, 0);
          for (int j = 0; j < kStep; ++j) add_input(w, j, x + (k + j) * sizeof(float), x_stride, acc);
        }
      }
      for (; k + kStep <= n; k += kStep, w += kStepBytes) {
        if constexpr (kGroups == Groups::kOne) prefetch<kFormat, kStepBytes>(w);
        for (int i = 0; i < kStep; ++i) add_input(w, i, x + (k + i) * sizeof(float), x_stride, acc);
      }
      if (k < n) add_input(w, 0, x + k * sizeof(float), x_stride, acc);
    }
  }

 private:
  template <int kM, int kS>
  RUSHLIGHT_INLINE void add_input(const uint8_t* w, int i, const uint8_t* x, size_t x_stride, F32 (&acc)[kM][kS]) {
    // The fewer of the two sides wait in registers.
    if constexpr (kM < kS) {
      F32 activation[kM];
      for (int m = 0; m < kM; ++m) activation[m] = broadcast(*reinterpret_cast<const float*>(x + m * x_stride));
      for (int s = 0; s < kS; ++s) {
        const F32 weight = load_weights(w, i, s);
        for (int m = 0; m < kM; ++m) acc[m][s] = fma(weight, activation[m], acc[m][s]);
      }
    } else {
      F32 weight[kS];
      for (int s = 0; s < kS; ++s) weight[s] = load_weights(w, i, s);
      for (int m = 0; m < kM; ++m) {
        const F32 activation = broadcast(*reinterpret_cast<const float*>(x + m * x_stride));
        for (int s = 0; s < kS; ++s) acc[m][s] = fma(weight[s], activation, acc[m][s]);
      }
    }
  }

  // The weights of one input; a bf16 is the upper half of a float, and i says which of the two that lie together.
  RUSHLIGHT_INLINE F32 load_weights(const uint8_t* w, int i, int s) {
    if constexpr (kFormat == Format::kF32) {
      return load<F32>(w + s * kLanes * 4);
    } else if constexpr (kFormat == Format::kF16) {
      return load_f16(w + s * kLanes * 2);
    } else {
      const U32 pairs = load<U32>(w + s * kLanes * 4);
      return as_f32(i == 0 ? pairs << 16 : pairs & 0xffff0000u);
    }
  }
};

using F32Kernel = Plain<Format::kF32>;
using F16Kernel = Plain<Format::kF16>;

#if defined(__AVX512BF16__)

// bf16 with the dot product of pairs: the activations are rounded to bf16 too.
struct BF16Kernel {
  static constexpr int kRows = (kRegisters - 4) / kVectors;
  static constexpr int kBlockK = 256;
  using XTile = uint16_t[kTile];

  template <int kM>
  static constexpr int kStrip = kVectors;

  static size_t prepared_bytes(int n_in) { return static_cast<size_t>(n_in + 1) / 2 * 4; }

  static void prepare(const float* x, int n_in, void* prepared) {
    auto* to = static_cast<uint8_t*>(prepared);
    for (int i = 0; i < n_in; i += kLanes) {
      const int n = n_in - i < kLanes ? n_in - i : kLanes;
      const auto rounded = _mm512_cvtneps_pbh(load_n(x + i, n));
      __builtin_memcpy(to + 2 * i, &rounded, static_cast<size_t>(n + 1) / 2 * 4);
    }
  }

  template <Groups kGroups, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int, const uint8_t* x, size_t x_stride, int n_k, const Ahead& ahead,
                            F32 (&acc)[kM][kS]) {
    for (int k = 0; k < n_k; k += 2, w += kPanel * 4) {
      if constexpr (kGroups == Groups::kOne) {
        prefetch<Format::kBF16, kPanel * 4>(w);
      } else if (k % kTile == 0) {
        Ahead::fetch<kGroups>(ahead, static_cast<size_t>(k) * kPanel * 2);
      }
      __m512bh weights[kS];
      for (int s = 0; s < kS; ++s) weights[s] = reinterpret_cast<__m512bh>(load<U32>(w + s * kLanes * 4));
      for (int m = 0; m < kM; ++m) {
        const I32 pair = broadcast(reinterpret_cast<const int32_t*>(x + m * x_stride)[k / 2]);
        for (int s = 0; s < kS; ++s) {
          acc[m][s] = _mm512_dpbf16_ps(acc[m][s], weights[s], reinterpret_cast<__m512bh>(pair));
        }
      }
    }
  }
};

#else

using BF16Kernel = Plain<Format::kBF16>;

#endif

// A row of activations, quantised in groups of 32 to integers from -kMost to kMost.
template <int kMost>
void quantize_row(const float* x, int n_in, void* prepared) {
  auto* group = static_cast<QuantizedGroup*>(prepared);
  for (int start = 0; start < n_in; start += kTile, ++group) {
    F32 values[kVectors];
    F32 most = {}, spoiled = {};
    for (int v = 0; v < kVectors; ++v) {
      const int from = start + v * kLanes;
      const int n = n_in - from < 0 ? 0 : n_in - from < kLanes ? n_in - from : kLanes;
      values[v] = n == kLanes ? load<F32>(x + from) : load_n(x + from, n);
      most = max(abs(values[v]), most);
      spoiled += values[v] * 0.0f;  // NaN if the value is infinite or NaN, which no byte can be
    }
    const float greatest = reduce_max(most);
    // A subnormal scale would have an infinite reciprocal; what it scales is nothing beside any other group.
    const bool counts = greatest > 1e-30f;
    group->scale = (counts ? greatest / float{kMost} : 0.0f) + reduce_add(spoiled);
    const bool finite = group->scale == group->scale;
    const F32 inverse = broadcast(counts ? float{kMost} / greatest : 0.0f);
    I32 q[kVectors], sum = {};
    for (int v = 0; v < kVectors; ++v) {
      q[v] = __builtin_convertvector(round_small(finite ? values[v] * inverse : F32{}), I32);
      sum += q[v];
    }
    store_bytes(group->q, q);
    group->sum = 0;
    for (int i = 0; i < kLanes; ++i) group->sum += sum[i];
  }
}

// int8 and int4: sums of integers within a group of 32, which are exact; one multiply-add of floats for each group.
template <int kBits>
struct Integer {
  static constexpr int kRows = kRegisters / 4;
  static constexpr int kBlockK = 512;
  static constexpr Format kFormat = kBits == 8 ? Format::kInt8 : Format::kInt4;
  static constexpr size_t kBytes = kTileBytes[static_cast<int>(kFormat)];
  using XTile = QuantizedGroup;

  template <int kM>
  static constexpr int kStrip = strip_of(kM, kRegisters / 2);

  static size_t prepared_bytes(int n_in) {
    return static_cast<size_t>(n_in + kTile - 1) / kTile * sizeof(QuantizedGroup);
  }
  static constexpr auto prepare = quantize_row<Dot<kBits>::kMost>;

  template <Groups kGroups, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int v, const uint8_t* x, size_t x_stride, int n_k, const Ahead& ahead,
                            F32 (&acc)[kM][kS]) {
    for (size_t fetched = 0; n_k > 0; n_k -= kTile, fetched += kBytes, w += kBytes, x += sizeof(QuantizedGroup)) {
      if constexpr (kGroups == Groups::kOne) {
        prefetch<kFormat, kBytes>(w);
      } else {
        Ahead::fetch<kGroups>(ahead, fetched);
      }
      Dot<kBits> dots[kM][kS];
      sum_group(w + v * kLanes * 4, x, x_stride, dots);
      for (int m = 0; m < kM; ++m) {
        const auto* group = reinterpret_cast<const QuantizedGroup*>(x + m * x_stride);
        for (int s = 0; s < kS; ++s) add_group(w, (v + s) * kLanes, *group, dots[m][s], acc[m][s]);
      }
    }
  }

 private:
  template <int kM, int kS>
  RUSHLIGHT_INLINE void sum_group(const uint8_t* w, const uint8_t* x, size_t x_stride, Dot<kBits> (&dots)[kM][kS]) {
#pragma GCC unroll 2  // unrolled wholly, it is more than the registers hold
    for (int i = 0; i < kTile * kBits / 32; ++i, w += kPanel * 4) {
      U8 bytes[kS];
      for (int s = 0; s < kS; ++s) bytes[s] = load<U8>(w + s * kLanes * 4);
      if constexpr (kBits == 8) {
        add_quad(bytes, x + 4 * i, x_stride, dots);
      } else {
        U8 low[kS], high[kS];
        for (int s = 0; s < kS; ++s) low[s] = bytes[s] & 15, high[s] = bytes[s] >> 4;
        add_quad(low, x + 8 * i, x_stride, dots);
        add_quad(high, x + 8 * i + 4, x_stride, dots);
      }
    }
  }

  template <int kM, int kS>
  RUSHLIGHT_INLINE void add_quad(const U8 (&w)[kS], const uint8_t* x, size_t x_stride, Dot<kBits> (&dots)[kM][kS]) {
    for (int m = 0; m < kM; ++m) {
      const Quad quad = load_quad(reinterpret_cast<const int8_t*>(x + m * x_stride));
      for (int s = 0; s < kS; ++s) Dot<kBits>::add(dots[m][s], w[s], quad);
    }
  }

  RUSHLIGHT_INLINE void add_group(const uint8_t* w, int output, const QuantizedGroup& group, const Dot<kBits>& dot,
                                  F32& acc) {
    if constexpr (kBits == 8) {
      const F32 scale = load_f16(w + kInt8Scales + 2 * output) * group.scale;
      acc = fma(to_f32(Dot<8>::total(dot) - kInt8Zero * group.sum), scale, acc);
    } else {
      const F32 scale = load_f16(w + kInt4Scales + 2 * output) * group.scale;
      acc = fma(to_f32(Dot<4>::total(dot)), scale, acc);
      const F32 sum = broadcast(group.scale * static_cast<float>(group.sum));
      acc = fma(load_f16(w + kInt4Minima + 2 * output), sum, acc);
    }
  }
};

// One group of rows over a block of a panel. From block to block the sums wait in y.
template <class Kernel, Groups kGroups, int kM>
void run_rows(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, const Ahead& ahead, float* y,
              size_t y_stride, bool first) {
  constexpr int kStrip = Kernel::template kStrip<kM>;
  for (int v = 0; v < kVectors; v += kStrip) {
    F32 acc[kM][kStrip];
    for (int m = 0; m < kM; ++m) {
      for (int s = 0; s < kStrip; ++s) acc[m][s] = first ? F32{} : load<F32>(y + m * y_stride + (v + s) * kLanes);
    }
    Kernel::template run<kGroups>(w, v, x, x_stride, n_k, v == 0 ? ahead : Ahead{nullptr, 0}, acc);
    for (int m = 0; m < kM; ++m) {
      for (int s = 0; s < kStrip; ++s) store(y + m * y_stride + (v + s) * kLanes, acc[m][s]);
    }
  }
}

using RunRows = void (*)(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, const Ahead& ahead, float* y,
                         size_t y_stride, bool first);

// run_rows for 1 to kRows rows, each for one group of rows, a few and many.
template <class Kernel>
struct Passes {
  RunRows of[3][Kernel::kRows];

  template <int... kLess>
  constexpr explicit Passes(std::integer_sequence<int, kLess...>)
      : of{{run_rows<Kernel, Groups::kOne, kLess + 1>...},
           {run_rows<Kernel, Groups::kFew, kLess + 1>...},
           {run_rows<Kernel, Groups::kMany, kLess + 1>...}} {}
};

inline void add_bias(const float* bias, float* y, size_t y_stride, int n_rows) {
  for (int v = 0; v < kVectors; ++v) {
    const F32 b = load<F32>(bias + v * kLanes);
    for (int row = 0; row < n_rows; ++row) {
      float* at = y + static_cast<size_t>(row) * y_stride + v * kLanes;
      store(at, load<F32>(at) + b);
    }
  }
}

// Of activations, what stays in the second-level cache beside the weights that pass.
inline constexpr size_t kActivationBytes = size_t{256} << 10;

template <class Kernel, Format kFormat>
void run_linear(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end) {
  constexpr size_t kBytes = kTileBytes[static_cast<int>(kFormat)];
  static constexpr Passes<Kernel> kPasses(std::make_integer_sequence<int, Kernel::kRows>{});
  const int n_rows = row_end - row_begin, n_panels = panel_end - panel_begin;
  const int n_groups = (n_rows + Kernel::kRows - 1) / Kernel::kRows;
  const Groups groups = n_groups == 1 ? Groups::kOne : n_groups <= kFewGroups ? Groups::kFew : Groups::kMany;
  constexpr int kFewBlockK = static_cast<int>(kFewBlockBytes / kBytes) * kTile;
  const int block_k = groups == Groups::kOne   ? job.n_in  // a steady stream over the whole panel is fastest
                      : groups == Groups::kFew ? kFewBlockK
                                               : Kernel::kBlockK;
  const int n_blocks = (job.n_in + block_k - 1) / block_k;
  // All of a panel while the rows stay in the cache; otherwise a block of all panels while that block of the rows does.
  const bool by_panel = static_cast<size_t>(n_rows) * job.x_stride_bytes <= kActivationBytes;

  const int n_steps = n_rows == 0 ? 0 : n_panels * n_blocks;
  const auto block_of = [&](int step) { return by_panel ? step % n_blocks : step / n_panels; };
  const auto panel_of = [&](int step) { return panel_begin + (by_panel ? step / n_blocks : step % n_panels); };
  const auto weights_of = [&](int step) {
    const size_t tile = static_cast<size_t>(block_of(step)) * static_cast<size_t>(block_k / kTile);
    return job.panels + static_cast<size_t>(panel_of(step)) * job.panel_bytes + tile * kBytes;
  };
  for (int step = 0; step < n_steps; ++step) {
    const int block = block_of(step), panel = panel_of(step), k = block * block_k;
    const int n_k = job.n_in - k < block_k ? job.n_in - k : block_k;
    const uint8_t* w = weights_of(step);
    const uint8_t* next = weights_of(step + 1 < n_steps ? step + 1 : step);
    const auto* x = static_cast<const uint8_t*>(job.x) + static_cast<size_t>(row_begin) * job.x_stride_bytes +
                    static_cast<size_t>(k / kTile) * sizeof(typename Kernel::XTile);
    float* y = job.y + static_cast<size_t>(row_begin) * job.y_stride + static_cast<size_t>(panel) * kPanel;
    for (int group = 0, row = 0; group < n_groups; ++group) {  // as even as can be
      const int m = n_rows / n_groups + (group < n_rows % n_groups ? 1 : 0);
      const size_t from = kBytes * static_cast<size_t>(group) / static_cast<size_t>(n_groups);
      const size_t to = kBytes * static_cast<size_t>(group + 1) / static_cast<size_t>(n_groups);
      const RunRows run = kPasses.of[static_cast<int>(groups)][m - 1];
      run(w, x + static_cast<size_t>(row) * job.x_stride_bytes, job.x_stride_bytes, n_k,
          {next + from, to - from}, y + static_cast<size_t>(row) * job.y_stride, job.y_stride, k == 0);
      row += m;
    }
    if (job.bias != nullptr && block == n_blocks - 1) {
      add_bias(job.bias + static_cast<size_t>(panel) * kPanel, y, job.y_stride, n_rows);
    }
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
