// x W for one row or many, over packed panels.
//
// Every output is one lane, and its sum over k is one chain of additions in the order of k. How many rows are computed
// side by side, and where a long k is cut, changes neither the operands nor the order: one row alone has the same bits.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kVectors = kPanel / kLanes;  // in a panel's row of outputs

// Far enough for the memory to answer in time; the hardware's own prefetcher alone does not reach the bandwidth.
inline constexpr size_t kPrefetchBytes = 4096;

template <bool kPrefetch, size_t kBytes>
RUSHLIGHT_INLINE void prefetch(const uint8_t* w) {
  if constexpr (kPrefetch) {
    for (size_t i = 0; i < kBytes; i += 64) __builtin_prefetch(w + kPrefetchBytes + i, 0, 3);
  }
}

// A format's kernel provides
//     kRows     rows side by side, as many as the registers hold
//     kBlockK   inputs to a block: its weights stay in the first-level cache while all rows pass
//     XTile     what a row's 32 activations are stored in
//     run       acc[m] += x[m][0 to n_k] W for kM rows

// f32 and f16: one input at a time.
template <int kBytes>
struct Plain {
  static constexpr int kRows = (kRegisters - 4) / kVectors;
  static constexpr int kBlockK = 512 / kBytes;
  using XTile = float[kTile];

  template <int kM, bool kPrefetch>
  RUSHLIGHT_INLINE void run(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, F32 (&acc)[kM][kVectors]) {
    for (int k = 0; k < n_k; ++k, w += kPanel * kBytes) {
      prefetch<kPrefetch, kPanel * kBytes>(w);
      // The fewer of the two sides wait in registers.
      if constexpr (kM < kVectors) {
        F32 activation[kM];
        for (int m = 0; m < kM; ++m) activation[m] = broadcast(reinterpret_cast<const float*>(x + m * x_stride)[k]);
        for (int v = 0; v < kVectors; ++v) {
          const F32 weight = load_weights(w, v);
          for (int m = 0; m < kM; ++m) acc[m][v] = fma(weight, activation[m], acc[m][v]);
        }
      } else {
        F32 weight[kVectors];
        for (int v = 0; v < kVectors; ++v) weight[v] = load_weights(w, v);
        for (int m = 0; m < kM; ++m) {
          const F32 activation = broadcast(reinterpret_cast<const float*>(x + m * x_stride)[k]);
          for (int v = 0; v < kVectors; ++v) acc[m][v] = fma(weight[v], activation, acc[m][v]);
        }
      }
    }
  }

 private:
  RUSHLIGHT_INLINE F32 load_weights(const uint8_t* w, int v) {
    if constexpr (kBytes == 4) {
      return load<F32>(w + v * kLanes * kBytes);
    } else {
      return load_f16(w + v * kLanes * kBytes);
    }
  }
};

using F32Kernel = Plain<4>;
using F16Kernel = Plain<2>;

#if defined(__AVX512BF16__)

// bf16 with the dot product of pairs: the activations are rounded to bf16 too.
struct BF16Kernel {
  static constexpr int kRows = (kRegisters - 4) / kVectors;
  static constexpr int kBlockK = 256;
  using XTile = uint16_t[kTile];

  static size_t prepared_bytes(int n_in) { return static_cast<size_t>(n_in + 1) / 2 * 4; }

  static void prepare(const float* x, int n_in, void* prepared) {
    auto* to = static_cast<uint8_t*>(prepared);
    for (int i = 0; i < n_in; i += kLanes) {
      const int n = n_in - i < kLanes ? n_in - i : kLanes;
      const auto rounded = _mm512_cvtneps_pbh(load_n(x + i, n));
      __builtin_memcpy(to + 2 * i, &rounded, static_cast<size_t>(n + 1) / 2 * 4);
    }
  }

  template <int kM, bool kPrefetch>
  RUSHLIGHT_INLINE void run(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, F32 (&acc)[kM][kVectors]) {
    for (int k = 0; k < n_k; k += 2, w += kPanel * 4) {
      prefetch<kPrefetch, kPanel * 4>(w);
      I32 pair[kM];
      for (int m = 0; m < kM; ++m) pair[m] = broadcast(reinterpret_cast<const int32_t*>(x + m * x_stride)[k / 2]);
      for (int v = 0; v < kVectors; ++v) {
        const auto weights = reinterpret_cast<__m512bh>(load<U32>(w + v * kLanes * 4));
        for (int m = 0; m < kM; ++m) {
          acc[m][v] = _mm512_dpbf16_ps(acc[m][v], weights, reinterpret_cast<__m512bh>(pair[m]));
        }
      }
    }
  }
};

#else

// bf16 without it: a bf16 is the upper half of a float, so a pair of them is two floats by a shift and a mask. Exact.
struct BF16Kernel {
  static constexpr int kRows = (kRegisters - 5) / kVectors;
  static constexpr int kBlockK = 256;
  using XTile = float[kTile];

  template <int kM, bool kPrefetch>
  RUSHLIGHT_INLINE void run(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, F32 (&acc)[kM][kVectors]) {
    int k = 0;
    for (; k + 2 <= n_k; k += 2, w += kPanel * 4) {
      prefetch<kPrefetch, kPanel * 4>(w);
      for (int v = 0; v < kVectors; ++v) {
        const U32 pairs = load<U32>(w + v * kLanes * 4);
        for (int m = 0; m < kM; ++m) {
          const auto* row = reinterpret_cast<const float*>(x + m * x_stride);
          acc[m][v] = fma(as_f32(pairs << 16), broadcast(row[k]), acc[m][v]);
          acc[m][v] = fma(as_f32(pairs & 0xffff0000u), broadcast(row[k + 1]), acc[m][v]);
        }
      }
    }
    if (k < n_k) {  // an odd n_in: what stands after the last activation belongs to others
      for (int v = 0; v < kVectors; ++v) {
        const U32 pairs = load<U32>(w + v * kLanes * 4);
        for (int m = 0; m < kM; ++m) {
          const auto* row = reinterpret_cast<const float*>(x + m * x_stride);
          acc[m][v] = fma(as_f32(pairs << 16), broadcast(row[k]), acc[m][v]);
        }
      }
    }
  }
};

#endif

// A row of activations, quantised to signed bytes in groups of 32.
inline void quantize_row(const float* x, int n_in, void* prepared) {
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
    group->scale = (counts ? greatest / 127.0f : 0.0f) + reduce_add(spoiled);
    const bool finite = group->scale == group->scale;
    const F32 inverse = broadcast(counts ? 127.0f / greatest : 0.0f);
    I32 sum = {};
    for (int v = 0; v < kVectors; ++v) {
      const I32 q = __builtin_convertvector(round_small(finite ? values[v] * inverse : F32{}), I32);
      store(group->q + v * kLanes, __builtin_convertvector(q, I8));
      sum += q;
    }
    group->sum = 0;
    for (int i = 0; i < kLanes; ++i) group->sum += sum[i];
  }
}

// int8 and int4: sums of integers within a group of 32, which are exact; one multiply-add of floats for each group.
template <int kBits>
struct Integer {
  static constexpr int kRows = kRegisters / 4 + 1 - Dot<kBits>::kSums;
  static constexpr int kBlockK = 512;
  static constexpr size_t kBytes = kTileBytes[static_cast<int>(kBits == 8 ? Format::kInt8 : Format::kInt4)];
  using XTile = QuantizedGroup;

  static size_t prepared_bytes(int n_in) {
    return static_cast<size_t>(n_in + kTile - 1) / kTile * sizeof(QuantizedGroup);
  }
  static constexpr auto prepare = quantize_row;

  template <int kM, bool kPrefetch>
  RUSHLIGHT_INLINE void run(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, F32 (&acc)[kM][kVectors]) {
    // Vectors of outputs whose integer sums fit in half of the registers.
    constexpr int kFit = kRegisters / 2 / (kM * Dot<kBits>::kSums);
    constexpr int kStrip = kFit >= kVectors ? kVectors : kFit >= 2 ? 2 : 1;
    for (int k = 0; k < n_k; k += kTile, w += kBytes, x += sizeof(QuantizedGroup)) {
      prefetch<kPrefetch, kBytes>(w);
      for (int v = 0; v < kVectors; v += kStrip) {
        Dot<kBits> dots[kM][kStrip];
        sum_group<kM, kStrip>(w + v * kLanes * 4, x, x_stride, dots);
        for (int m = 0; m < kM; ++m) {
          const auto* group = reinterpret_cast<const QuantizedGroup*>(x + m * x_stride);
          for (int s = 0; s < kStrip; ++s) add_group(w, (v + s) * kLanes, *group, dots[m][s], acc[m][v + s]);
        }
      }
    }
  }

 private:
  template <int kM, int kStrip>
  RUSHLIGHT_INLINE void sum_group(const uint8_t* w, const uint8_t* x, size_t x_stride, Dot<kBits> (&dots)[kM][kStrip]) {
#pragma GCC unroll 2  // unrolled wholly, it is more than the registers hold
    for (int i = 0; i < kTile * kBits / 32; ++i, w += kPanel * 4) {
      U8 bytes[kStrip];
      for (int s = 0; s < kStrip; ++s) bytes[s] = load<U8>(w + s * kLanes * 4);
      if constexpr (kBits == 8) {
        add_quad<kM, kStrip>(bytes, x + 4 * i, x_stride, dots);
      } else {
        U8 low[kStrip], high[kStrip];
        for (int s = 0; s < kStrip; ++s) low[s] = bytes[s] & 15, high[s] = bytes[s] >> 4;
        add_quad<kM, kStrip>(low, x + 8 * i, x_stride, dots);
        add_quad<kM, kStrip>(high, x + 8 * i + 4, x_stride, dots);
      }
    }
  }

  template <int kM, int kStrip>
  RUSHLIGHT_INLINE void add_quad(const U8 (&w)[kStrip], const uint8_t* x, size_t x_stride,
                                 Dot<kBits> (&dots)[kM][kStrip]) {
    for (int m = 0; m < kM; ++m) {
      const Quad quad = load_quad(reinterpret_cast<const int8_t*>(x + m * x_stride));
      for (int s = 0; s < kStrip; ++s) Dot<kBits>::add(dots[m][s], w[s], quad);
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

template <class Kernel, int kM, bool kPrefetch>
void run_rows(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, float* y, size_t y_stride, bool first) {
  F32 acc[kM][kVectors];
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kVectors; ++v) acc[m][v] = first ? F32{} : load<F32>(y + m * y_stride + v * kLanes);
  }
  Kernel::template run<kM, kPrefetch>(w, x, x_stride, n_k, acc);
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kVectors; ++v) store(y + m * y_stride + v * kLanes, acc[m][v]);
  }
}

// Rows from `row` on, kM at a time, then the rest with half as many. The first to pass fetches the weights ahead.
template <class Kernel, int kM>
void run_block(const uint8_t* w, const uint8_t* x, size_t x_stride, int n_k, float* y, size_t y_stride, bool first,
               int row, int row_begin, int row_end) {
  for (; row + kM <= row_end; row += kM) {
    const uint8_t* x_row = x + static_cast<size_t>(row) * x_stride;
    float* y_row = y + static_cast<size_t>(row) * y_stride;
    if (row == row_begin) {
      run_rows<Kernel, kM, true>(w, x_row, x_stride, n_k, y_row, y_stride, first);
    } else {
      run_rows<Kernel, kM, false>(w, x_row, x_stride, n_k, y_row, y_stride, first);
    }
  }
  if constexpr (kM > 1) {
    run_block<Kernel, kM / 2>(w, x, x_stride, n_k, y, y_stride, first, row, row_begin, row_end);
  }
}

inline void add_bias(const float* bias, float* y, size_t y_stride, int row_begin, int row_end) {
  for (int v = 0; v < kVectors; ++v) {
    const F32 b = load<F32>(bias + v * kLanes);
    for (int row = row_begin; row < row_end; ++row) {
      float* at = y + static_cast<size_t>(row) * y_stride + v * kLanes;
      store(at, load<F32>(at) + b);
    }
  }
}

template <class Kernel, Format kFormat>
void run_linear(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end) {
  constexpr size_t kBytes = kTileBytes[static_cast<int>(kFormat)];
  // Rows that fit side by side need no cut: each weight is used once.
  const int block = row_end - row_begin <= Kernel::kRows ? job.n_in : Kernel::kBlockK;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* w = job.panels + static_cast<size_t>(panel) * job.panel_bytes;
    const auto* x = static_cast<const uint8_t*>(job.x);
    float* y = job.y + static_cast<size_t>(panel) * kPanel;
    for (int k = 0; k < job.n_in; k += block) {
      const int n_k = job.n_in - k < block ? job.n_in - k : block;
      const size_t tiles = static_cast<size_t>(k / kTile);
      run_block<Kernel, Kernel::kRows>(w + tiles * kBytes, x + tiles * sizeof(typename Kernel::XTile),
                                       job.x_stride_bytes, n_k, y, job.y_stride, k == 0, row_begin, row_begin, row_end);
    }
    if (job.bias != nullptr) add_bias(job.bias + static_cast<size_t>(panel) * kPanel, y, job.y_stride, row_begin, row_end);
  }
}

}  // namespace rushlight::RUSHLIGHT_ISA
