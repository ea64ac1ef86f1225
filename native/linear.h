// GEMM over packed panels: x W for one row or many.
//
// Every output is one lane, and its sum over k is one chain of additions in the order of k. The number of rows that are
// computed together, and the blocking of k, change neither operands nor order: a row has the same bits in any batch.
#pragma once

#include <limits>
#include <utility>

#include "kernels.h"
#include "memory.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kVectors = kPanel / kLanes;  // in a panel's 32 outputs

// Prefetch distance of a single pass over the weights for kM rows; 0 for none. Zen 3 streams from memory by itself, and
// software only helps from the second-level cache to the first, at a distance that shrinks with the arithmetic per byte.
// Zen 4 streams best without help, unless much is computed between two lines; Sapphire Rapids, which has AMX, with help
// (both measured).
template <Format kFormat, int kM = 1>
inline constexpr size_t kPrefetchBytes = [] {
  if (kLanes < 16) return kFormat == Format::kF32 ? 256 : 640;
  if (kHasAMX) return 4096;
  constexpr int kUnaided = kFormat == Format::kF16 ? 1 : kFormat < Format::kInt8 ? 6 : kPanel;
  return kM > kUnaided ? 4096 : 0;
}();

template <Format kFormat, int kM, size_t kBytes>
RUSHLIGHT_INLINE void prefetch(const uint8_t* w) {
  constexpr size_t kAhead = kPrefetchBytes<kFormat, kM>;
  for (size_t i = 0; kAhead > 0 && i < kBytes; i += 64) __builtin_prefetch(w + kAhead + i, 0, 3);
}

// Cache-blocked GEMM: a pass over a weight block multiplies it by one group of rows, for one strip of outputs whose
// sums fit in the registers. Of several passes, the first `kFetchers` prefetch the next block.
enum class Pass : uint8_t { kOnly, kFirst, kLater };

// Bytes of weights in a block: half of a first-level cache. With 32 registers, many passes of floats read a block from
// the second-level cache as fast; larger blocks load and store the sums less often.
inline constexpr size_t kBlockBytes = 16384;
inline constexpr size_t kLargeBlockBytes = 65536;
inline constexpr int kUnpackingGroups = 4;  // of rows, for which int4 and int6 are unpacked once
inline constexpr int kNever = std::numeric_limits<int>::max();

// The first kFetchers passes over a block prefetch the next block, an equal part each, so that memory transfers overlap
// with arithmetic. They prefetch lines in sequence, which the hardware prefetcher follows, and a few at a time, because
// the number of outstanding cache misses is limited. Kernels of floats with 32 registers rarely make more than 2 passes.
inline constexpr int kFloatFetchers = kRegisters == 32 ? 2 : 4;
inline constexpr int kManyFloatPasses = kRegisters == 32 ? 3 : kNever;

// Cache lines to prefetch for every kBytes of weights that are multiplied.
template <int kFetchers, size_t kBytes>
inline constexpr int kLinesAhead = (kBytes / 64 + kFetchers - 1) / kFetchers;

RUSHLIGHT_INLINE void prefetch_line(const uint8_t* line) { __builtin_prefetch(line, 0, 3); }

// The same for kernels of floats, which with AVX-512 fetch so fast that the first-level cache runs out of places for
// lines under way: into the second-level cache. Naming a sum keeps the instruction between two additions to it, where
// the compiler would otherwise gather the prefetches of an unrolled loop at its top.
RUSHLIGHT_INLINE void prefetch_between(const uint8_t* line, F32& sum) {
#if defined(__AVX512F__) && !defined(RUSHLIGHT_EMULATE_AVX512)
  asm volatile("prefetcht1 %1" : "+v"(sum) : "m"(*line));
#else
  static_cast<void>(sum);
  prefetch_line(line);
#endif
}

// The number of a panel's vectors whose sums, for this many rows, fit in this many registers.
constexpr int strip_of(int rows, int registers) {
  int strip = kVectors;
  while (strip > 1 && strip * rows > registers) strip /= 2;
  return strip;
}

// A format's kernel provides
//     kRows     the maximum number of rows computed together, limited by registers
//     kFetchers the passes over a block that prefetch the next one
//     kMany     the groups of rows from which blocks are large
//     kUnpacks  whether many groups of rows multiply unpacked weights
//     XTile     the storage of 32 activations of a row
//     kStrip    vectors of outputs that are computed together for kM rows
//     run       acc[m][s] += x[m][0 to n_k] W for the outputs from vector v on, prefetching from `ahead` on

// Floats times f32, f16 and bf16: one input at a time.
template <Format kFormat>
struct Plain {
  static constexpr int kFetchers = kFloatFetchers, kMany = kManyFloatPasses;
  static constexpr bool kUnpacks = false;
  // With 16 registers, loads are the bottleneck: three rows by a panel's full width need the fewest. Weights that are
  // converted first are better shared by more rows.
  static constexpr int kRows = kFormat == Format::kF32 && kRegisters == 16 ? 3 : (kRegisters - 4) / 2;
  using XTile = float[kTile];

  // Registers besides the sums: activations or, for many rows, two vectors of weights; one operand of the other side;
  // and the mask of bf16.
  template <int kM>
  static constexpr int kStrip = strip_of(kM, kRegisters - (kM < 4 ? kM : 2) - 1 - (kFormat == Format::kBF16 ? 1 : 0));

  template <Pass kPass, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int v, const uint8_t* x, size_t x_stride, int n_k, const uint8_t* ahead,
                            F32 (&acc)[kM][kS]) {
    constexpr int kStep = kFormat == Format::kBF16 ? 2 : 1;  // inputs that are stored together
    constexpr size_t kStepBytes = kTileBytes[static_cast<int>(kFormat)] / kTile * kStep;
    constexpr int kUnrolled = kPass == Pass::kOnly ? kStep : 8;
    constexpr int kInputsALine = kUnrolled / kLinesAhead<kFetchers, kStepBytes / kStep * kUnrolled>;
    w += static_cast<size_t>(v) * kStepBytes / kVectors;
    int k = 0;
    for (; k + kUnrolled <= n_k; k += kUnrolled) {
#pragma GCC unroll 8
      for (int i = 0; i < kUnrolled; i += kStep, w += kStepBytes, x += kStep * sizeof(float)) {
        if constexpr (kPass == Pass::kOnly) {
          prefetch<kFormat, kM, kStepBytes>(w);
        } else if (kPass == Pass::kFirst && i % kInputsALine == 0) {
          prefetch_between(ahead, acc[0][0]);
          ahead += 64;
        }
        for (int j = 0; j < kStep; ++j) add_input<kPass>(w, j, x + j * sizeof(float), x_stride, acc);
      }
    }
    for (; k < n_k; k += kStep, w += kStepBytes, x += kStep * sizeof(float)) {
      for (int j = 0; j < kStep && k + j < n_k; ++j) add_input<kPass>(w, j, x + j * sizeof(float), x_stride, acc);
    }
  }

 private:
  template <Pass kPass, int kM, int kS>
  RUSHLIGHT_INLINE void add_input(const uint8_t* w, int i, const uint8_t* x, size_t x_stride, F32 (&acc)[kM][kS]) {
    // The smaller side stays in registers.
    if constexpr (kM < kS) {
      F32 activation[kM];
      for (int m = 0; m < kM; ++m) activation[m] = broadcast(*reinterpret_cast<const float*>(x + m * x_stride));
      for (int s = 0; s < kS; ++s) {
        F32 weight = load_weights(w, i, s);
        // Otherwise the compiler loads it once for each row, which costs time unless memory is the bottleneck.
        if constexpr (kPass != Pass::kOnly && kM == 2) keep_in_register(weight);
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

  // The weights of one input. A bf16 is the upper half of a float; i selects one of the two inputs of a pair.
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

// bf16 by the dot-product instruction of pairs, which takes activations in bf16 too.
struct BF16Kernel {
  static constexpr int kFetchers = kFloatFetchers, kMany = kManyFloatPasses;
  static constexpr bool kUnpacks = false;
  static constexpr int kRows = (kRegisters - 4) / kVectors;
  using XTile = uint16_t[kTile];

  template <int kM>
  static constexpr int kStrip = kVectors;

  static size_t prepared_bytes(int n_in) { return static_cast<size_t>(n_in + 1) / 2 * 4; }

  static void prepare(const float* x, int n_in, void* prepared) {
    auto* to = static_cast<uint8_t*>(prepared);
    int i = 0;
    for (; i + kLanes <= n_in; i += kLanes) store(to + 2 * i, _mm512_cvtneps_pbh(load<F32>(x + i)));
    if (i < n_in) {
      const auto rounded = _mm512_cvtneps_pbh(load_n(x + i, n_in - i));
      __builtin_memcpy(to + 2 * i, &rounded, static_cast<size_t>(n_in - i + 1) / 2 * 4);
    }
  }

  template <Pass kPass, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int, const uint8_t* x, size_t x_stride, int n_k, const uint8_t* ahead,
                            F32 (&acc)[kM][kS]) {
    for (int k = 0; k < n_k; k += 2, w += kPanel * 4) {
      if constexpr (kPass == Pass::kOnly) {
        prefetch<Format::kBF16, kM, kPanel * 4>(w);
      } else if (kPass == Pass::kFirst && k % (kFetchers * 64 / (kPanel * 2)) == 0) {
        prefetch_between(ahead, acc[0][0]);
        ahead += 64;
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

// A row of activations, quantised in groups of 32 to integers from -kMaxQuantized to kMaxQuantized.
template <int kBits>
void quantize_row(const float* x, int n_in, void* prepared) {
  auto* group = static_cast<QuantizedGroup<kBits>*>(prepared);
  for (int start = 0; start < n_in; start += kTile, ++group) {
    F32 values[kVectors];
    F32 most = {};
    PartialSums not_finite;
    for (int v = 0; v < kVectors; ++v) {
      const int from = start + v * kLanes;
      const int n = n_in - from < 0 ? 0 : n_in - from < kLanes ? n_in - from : kLanes;
      values[v] = n == kLanes ? load<F32>(x + from) : load_n(x + from, n);
      most = max(abs(values[v]), most);
      not_finite.of[v % kSumVectors] += values[v] * 0.0f;  // NaN if a value is infinite or NaN
    }
    const float greatest = reduce_max(most);
    // A subnormal scale would have an infinite reciprocal, and its group adds nothing visible.
    const bool counts = greatest > 1e-30f;
    group->scale = (counts ? greatest / float{kMaxQuantized<kBits>} : 0.0f) + reduce_add(not_finite);
    const bool finite = group->scale == group->scale;
    const F32 inverse = broadcast(counts ? float{kMaxQuantized<kBits>} / greatest : 0.0f);
    I32 q[kVectors], sum = {};
    for (int v = 0; v < kVectors; ++v) {
      q[v] = __builtin_convertvector(round_small(finite ? values[v] * inverse : F32{}), I32);
      sum += q[v];
    }
    store_bytes(group->q, q);
    const int32_t total = reduce_add(sum);
    if constexpr (kBits == 8) {
      group->sum = -kInt8Zero * total;
    } else {
      group->sum = -kZeroStep<kBits> * static_cast<float>(total);
    }
  }
}

// The scales of kLanes groups of int6 or int4, and their zero points in steps of kZeroStep.
struct ScalesAndZeros {
  F32 scale, zero;
};

RUSHLIGHT_INLINE ScalesAndZeros load_groups(const uint8_t* from) {
  const U32 groups = load_u16(from);
  const U32 zero = groups & ((1u << kZeroBits) - 1);
  return {as_f32((groups << kScaleShift) + kLeastScale), to_f32(reinterpret_cast<I32>(zero))};
}

// int8, int6 and int4: exact sums within a group of 32, then one float multiply-add per group that rounds.
//
// Many groups of rows share the work of taking weights apart: `Unpacked` multiplies tiles of bytes,
//     uint8 [8 quads of k][32 o][4 k]; then float scale[32 o] and zero[32 o]
template <int kBits, bool kUnpacked = false>
struct Integer {
  // More than 6 rows would not leave registers for both the sums of a group and those of all groups.
  static constexpr int kRows = kRegisters == 32 ? 6 : kRegisters / 4;
  static constexpr int kFetchers = 4, kMany = kNever;
  static constexpr bool kUnpacks = kBits != 8;
  static constexpr Format kFormat = kBits == 8 ? Format::kInt8 : kBits == 6 ? Format::kInt6 : Format::kInt4;
  static constexpr size_t kPackedBytes = kTileBytes[static_cast<int>(kFormat)];
  static constexpr size_t kQuadBytes = kPanel * 4, kGroupsOffset = kTile * kPanel, kZerosOffset = kPanel * sizeof(float);
  static constexpr size_t kBytes = kUnpacked ? kGroupsOffset + 2 * kZerosOffset : kPackedBytes;
  using XTile = QuantizedGroup<kBits>;
  using Unpacked = Integer<kBits, true>;

  template <int kM>
  static constexpr int kStrip = strip_of(kM, kRegisters / 2);

  static size_t prepared_bytes(int n_in) {
    return static_cast<size_t>(n_in + kTile - 1) / kTile * sizeof(XTile);
  }
  static constexpr auto prepare = quantize_row<kBits>;

  static void unpack(const uint8_t* w, int n_k, uint8_t* to) {
    for (; n_k > 0; n_k -= kTile, w += kPackedBytes, to += Unpacked::kBytes) {
      for (int v = 0; v < kVectors; ++v) {
        each_quad<1>(w, v, [&](int i, const U8 (&bytes)[1]) __attribute__((always_inline)) { store(to + i * kQuadBytes + v * kLanes * 4, bytes[0]); });
        const auto [scale, zero] = load_groups(w + kGroups<kBits> + 2 * v * kLanes);
        store(to + kGroupsOffset + v * kLanes * 4, scale);
        store(to + kGroupsOffset + kZerosOffset + v * kLanes * 4, zero);
      }
    }
  }

  template <Pass kPass, int kM, int kS>
  RUSHLIGHT_INLINE void run(const uint8_t* w, int v, const uint8_t* x, size_t x_stride, int n_k, const uint8_t* ahead,
                            F32 (&acc)[kM][kS]) {
    for (; n_k > 0; n_k -= kTile, w += kBytes, x += sizeof(XTile)) {
      if constexpr (kPass == Pass::kOnly) {
        prefetch<kFormat, kM, kBytes>(w);
      } else if constexpr (kPass == Pass::kFirst) {
        for (int i = 0; i < kLinesAhead<kFetchers, kPackedBytes>; ++i, ahead += 64) prefetch_line(ahead);
      }
      Dot<kBits> dots[kM][kS];
      if constexpr (kBits == 8) {
        for (int m = 0; m < kM; ++m) {
          for (int s = 0; s < kS; ++s) dots[m][s].sum = broadcast(group_of(x, m, x_stride).sum);
        }
      }
      each_quad<kS>(w, v, [&](int i, const U8 (&bytes)[kS]) __attribute__((always_inline)) {
        for (int m = 0; m < kM; ++m) {
          const Quad quad = load_quad(group_of(x, m, x_stride).q + 4 * i);
          for (int s = 0; s < kS; ++s) Dot<kBits>::add(dots[m][s], bytes[s], quad);
        }
      });
      for (int s = 0; s < kS; ++s) add_group(w, (v + s) * kLanes, x, x_stride, s, dots, acc);
    }
  }

 private:
  RUSHLIGHT_INLINE const XTile& group_of(const uint8_t* x, int m, size_t x_stride) {
    return *reinterpret_cast<const XTile*>(x + m * x_stride);
  }

  // Calls f(i, bytes) for each quad of k of a tile, with its weights for the outputs of kS vectors from vector v on.
  template <int kS, class F>
  RUSHLIGHT_INLINE void each_quad(const uint8_t* w, int v, const F& f) {
    w += v * kLanes * 4;
    if constexpr (kBits == 8 || kUnpacked) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        U8 bytes[kS];
        for (int s = 0; s < kS; ++s) bytes[s] = load<U8>(w + i * kQuadBytes + s * kLanes * 4);
        f(i, bytes);
      }
    } else if constexpr (kBits == 6) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, w += kInt6Half) {
        U8 quads[4][kS];
        for (int s = 0; s < kS; ++s) {
          const auto of = [&](int i) { return load<U32>(w + i * kQuadBytes + s * kLanes * 4); };
          const U32 fourth = (of(0) >> 6 & 0x03030303u) | (of(1) >> 4 & 0x0c0c0c0cu) | (of(2) >> 2 & 0x30303030u);
          for (int i = 0; i < 3; ++i) quads[i][s] = reinterpret_cast<U8>(of(i) & 0x3f3f3f3fu);
          quads[3][s] = reinterpret_cast<U8>(fourth);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) f(4 * half + i, quads[i]);
      }
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        U8 low[kS], high[kS];
        for (int s = 0; s < kS; ++s) {
          const U8 bytes = load<U8>(w + i * kQuadBytes + s * kLanes * 4);
          low[s] = bytes & 15, high[s] = bytes >> 4;
        }
        f(2 * i, low);
        f(2 * i + 1, high);
      }
    }
  }

  RUSHLIGHT_INLINE ScalesAndZeros load_scales(const uint8_t* w, int output) {
    if constexpr (kUnpacked) {
      const uint8_t* scales = w + kGroupsOffset + output * sizeof(float);
      return {load<F32>(scales), load<F32>(scales + kZerosOffset)};
    } else {
      return load_groups(w + kGroups<kBits> + 2 * output);
    }
  }

  template <int kM, int kS>
  RUSHLIGHT_INLINE void add_group(const uint8_t* w, int output, const uint8_t* x, size_t x_stride, int s,
                                  const Dot<kBits> (&dots)[kM][kS], F32 (&acc)[kM][kS]) {
    if constexpr (kBits == 8) {
      const F32 scale = load_f16(w + kInt8Scales + 2 * output);
      for (int m = 0; m < kM; ++m) {
        const F32 dot = to_f32(Dot<8>::total(dots[m][s]));
        acc[m][s] = fma(dot, scale * group_of(x, m, x_stride).scale, acc[m][s]);
      }
    } else {
      const auto [scale, zero] = load_scales(w, output);
      for (int m = 0; m < kM; ++m) {
        const XTile& group = group_of(x, m, x_stride);
        const F32 dot = fma(zero, broadcast(group.sum), to_f32(Dot<kBits>::total(dots[m][s])));  // exact
        acc[m][s] = fma(dot, scale * group.scale, acc[m][s]);
      }
    }
  }
};

// All outputs of a panel for kM rows over a block, beginning with the block's pass number `pass`, each of which
// prefetches `share` bytes of the next block. Between blocks, y holds the sums.
template <class Kernel, Pass kPass, int kM>
void run_rows(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, const uint8_t* next, size_t share, int pass,
              float* y, size_t y_stride, bool first) {
  constexpr int kStrip = Kernel::template kStrip<kM>;
  for (int v = 0; v < kVectors; v += kStrip, ++pass) {
    const uint8_t* ahead = next + static_cast<size_t>(pass % Kernel::kFetchers) * share;
    F32 acc[kM][kStrip];
    if (kLanes == 16 && kM > 1 && first) {  // the lines that are stored to at the end may be in another core's cache
      for (int m = 0; m < kM; ++m) {
        for (int s = 0; s < kStrip * kLanes; s += 16) __builtin_prefetch(y + m * y_stride + v * kLanes + s, 1);
      }
    }
    for (int m = 0; m < kM; ++m) {
      for (int s = 0; s < kStrip; ++s) acc[m][s] = first ? F32{} : load<F32>(y + m * y_stride + (v + s) * kLanes);
    }
    Kernel::template run<kPass>(w, v, x, x_stride, n_k, ahead, acc);
    for (int m = 0; m < kM; ++m) {
      for (int s = 0; s < kStrip; ++s) store(y + m * y_stride + (v + s) * kLanes, acc[m][s]);
    }
  }
}

using RunRows = void (*)(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, const uint8_t* next,
                         size_t share, int pass, float* y, size_t y_stride, bool first);

// run_rows for 1 to kRows rows.
template <class Kernel>
struct RowGroups {
  int n_passes[Kernel::kRows];  // over a block
  RunRows only[Kernel::kRows], first[Kernel::kRows], later[Kernel::kRows];

  template <int... kLess>
  constexpr explicit RowGroups(std::integer_sequence<int, kLess...>)
      : n_passes{kVectors / Kernel::template kStrip<kLess + 1>...},
        only{run_rows<Kernel, Kernel::template kStrip<kLess + 1> == kVectors ? Pass::kOnly : Pass::kFirst,
                       kLess + 1>...},
        first{run_rows<Kernel, Pass::kFirst, kLess + 1>...},
        later{run_rows<Kernel, Pass::kLater, kLess + 1>...} {}
};

template <class Kernel>
inline constexpr RowGroups<Kernel> kRowGroups(std::make_integer_sequence<int, Kernel::kRows>{});

inline void add_bias(const float* bias, float* y, size_t y_stride, int n_rows) {
  for (int v = 0; v < kVectors; ++v) {
    const F32 b = load<F32>(bias + v * kLanes);
    for (int row = 0; row < n_rows; ++row) {
      float* at = y + static_cast<size_t>(row) * y_stride + v * kLanes;
      store(at, load<F32>(at) + b);
    }
  }
}

// A block of a panel, and the activations and results that belong to it.
struct Block {
  const uint8_t* w;
  const uint8_t* next;  // the weights that are read after it
  const uint8_t* x;     // of the first row
  float* y;             // of the first row
  int n_k;
  bool first;  // of its panel
};

// Computes some panels and rows by blocks of block_k inputs.
template <size_t kBytes, size_t kXBytes, class Compute>
RUSHLIGHT_INLINE void each_block(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end,
                                 int block_k, const Compute& compute) {
  const int n_rows = row_end - row_begin, n_panels = panel_end - panel_begin;
  const int n_blocks = (job.n_in + block_k - 1) / block_k;
  // Panel by panel, whose sums then stay in the cache, while all rows fit in half of the second-level cache, as weights
  // stream through it too. Otherwise block by block, so that a block of the rows fits.
  const bool by_panel = static_cast<size_t>(n_rows) * job.x_stride_bytes <= second_level_cache_bytes() / 2;
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
    // After the last block, the memory that follows it: usually this thread's next part.
    const uint8_t* after = w + kBytes * static_cast<size_t>((n_k + kTile - 1) / kTile);
    const uint8_t* next = step + 1 < n_steps ? weights_of(step + 1) : after;
    const auto* x = static_cast<const uint8_t*>(job.x) + static_cast<size_t>(row_begin) * job.x_stride_bytes +
                    static_cast<size_t>(k / kTile) * kXBytes;
    float* y = job.y + static_cast<size_t>(row_begin) * job.y_stride + static_cast<size_t>(panel) * kPanel;
    compute(Block{w, next, x, y, n_k, k == 0});
    if (job.bias != nullptr && block == n_blocks - 1) {
      add_bias(job.bias + static_cast<size_t>(panel) * kPanel, y, job.y_stride, n_rows);
    }
  }
}

// Rows of group `group`, of n_groups of equal size or one row more.
RUSHLIGHT_INLINE int rows_of(int group, int n_groups, int n_rows) {
  return n_rows / n_groups + (group < n_rows % n_groups ? 1 : 0);
}

// All rows times the weights w of a block of block_bytes, of which this may be the last part.
template <class Kernel>
RUSHLIGHT_INLINE void run_groups(const LinearJob& job, const Block& block, const uint8_t* w, size_t block_bytes,
                                 int n_rows) {
  const auto& of = kRowGroups<Kernel>;
  const int n_groups = (n_rows + Kernel::kRows - 1) / Kernel::kRows;
  for (int group = 0, row = 0, pass = 0; group < n_groups; ++group) {
    const int m = rows_of(group, n_groups, n_rows);
    const auto& kernels = n_groups == 1 ? of.only : pass < Kernel::kFetchers ? of.first : of.later;
    kernels[m - 1](w, block.x + static_cast<size_t>(row) * job.x_stride_bytes, job.x_stride_bytes, block.n_k, block.next,
                   block_bytes / Kernel::kFetchers, pass, block.y + static_cast<size_t>(row) * job.y_stride,
                   job.y_stride, block.first);
    row += m;
    pass += of.n_passes[m - 1];
  }
}

template <class Kernel, Format kFormat>
void run_linear(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end) {
  constexpr size_t kBytes = kTileBytes[static_cast<int>(kFormat)];
  const int n_rows = row_end - row_begin;
  const int n_groups = (n_rows + Kernel::kRows - 1) / Kernel::kRows;
  const auto each = [&](int block_k, const auto& compute) {
    each_block<kBytes, sizeof(typename Kernel::XTile)>(job, panel_begin, panel_end, row_begin, row_end, block_k, compute);
  };
  if constexpr (Kernel::kUnpacks) {
    if (n_groups >= kUnpackingGroups) {
      using Unpacked = typename Kernel::Unpacked;
      constexpr size_t kTiles = kBlockBytes / Unpacked::kBytes;
      alignas(64) uint8_t unpacked[kTiles * Unpacked::kBytes];
      return each(kTiles * kTile, [&](const Block& block) {
        Kernel::unpack(block.w, block.n_k, unpacked);
        run_groups<Unpacked>(job, block, unpacked, kTiles * kBytes, n_rows);
      });
    }
  }
  const size_t block_bytes = n_groups < Kernel::kMany ? kBlockBytes : kLargeBlockBytes;
  // With a single pass, one stream over the entire panel is fastest.
  const bool single = n_groups == 1 && kRowGroups<Kernel>.n_passes[n_rows - 1] == 1;
  each(single ? job.n_in : static_cast<int>(block_bytes / kBytes) * kTile,
       [&](const Block& block) { run_groups<Kernel>(job, block, block.w, block_bytes, n_rows); });
}

}  // namespace rushlight::RUSHLIGHT_ISA
