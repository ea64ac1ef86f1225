// A tile of a checkpoint's matrix to floats, [32 k][32 o], and from them to the bytes of its format.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace rushlight::RUSHLIGHT_ISA {

inline constexpr int kTileVectors = kPanel / kLanes;

RUSHLIGHT_INLINE F32 load_bf16(const void* from) { return as_f32(__builtin_convertvector(load<U16>(from), U32) << 16); }

// A whole tile whose rows, of values that `kLoad` reads, are `row_bytes` apart. Rows are inputs or outputs.
template <F32 (*kLoad)(const void*), size_t kItemBytes>
void read_tile(const uint8_t* from, size_t row_bytes, bool rows_are_inputs, float* tile) {
  constexpr size_t kVectorBytes = kItemBytes * kLanes;
  if (rows_are_inputs) {
    for (int k = 0; k < kTile; ++k, from += row_bytes) {
      for (int v = 0; v < kTileVectors; ++v) store(tile + k * kPanel + v * kLanes, kLoad(from + v * kVectorBytes));
    }
    return;
  }
  for (int o = 0; o < kPanel; o += kLanes, from += kLanes * row_bytes) {
    for (int k = 0; k < kTile; k += kLanes) {
      F32 rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = kLoad(from + i * row_bytes + k * kItemBytes);
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(tile + (k + i) * kPanel + o, rows[i]);
    }
  }
}

RUSHLIGHT_INLINE bool all_finite(const float* tile) {
  I32 finite = ~I32{};
  for (int i = 0; i < kTile * kPanel; i += kLanes) finite &= abs(load<F32>(tile + i)) < __builtin_inff();
  return reduce_max(to_f32(~finite & 1)) == 0.0f;
}

// Stores a vector in half precision, and returns the rounded values.
RUSHLIGHT_INLINE F32 through_f16(F32 v, uint8_t* stored) {
  store_f16(stored, v);
  return load_f16(stored);
}

inline bool pack_f32(const float* tile, uint8_t* packed) {
  __builtin_memcpy(packed, tile, sizeof(float) * kTile * kPanel);
  return all_finite(tile);
}

inline bool pack_f16(const float* tile, uint8_t* packed) {
  F32 most = {};
  for (int i = 0; i < kTile * kPanel; i += kLanes) most = max(abs(through_f16(load<F32>(tile + i), packed + 2 * i)), most);
  return reduce_max(most) < __builtin_inff() && all_finite(tile);
}

inline bool pack_bf16(const float* tile, uint8_t* packed) {
  for (int k = 0; k < kTile; k += 2) {
    for (int o = 0; o < kPanel; o += kLanes) {
      U32 rounded[2];
      for (int i = 0; i < 2; ++i) {
        const U32 bits = load<U32>(tile + (k + i) * kPanel + o);
        rounded[i] = bits + 0x7fffu + (bits >> 16 & 1u);  // to nearest, ties to even
      }
      store(packed + (k / 2 * kPanel + o) * 4, rounded[0] >> 16 | (rounded[1] & 0xffff0000u));
    }
  }
  // A larger magnitude rounds to infinity.
  F32 most = {};
  for (int i = 0; i < kTile * kPanel; i += kLanes) most = max(abs(load<F32>(tile + i)), most);
  return all_finite(tile) && reduce_max(most) < 3.3961776e38f;
}

// Symmetric: scale = maximum / 127, rounded to half before the values are divided by it.
inline bool pack_int8(const float* tile, uint8_t* packed) {
  for (int o = 0; o < kPanel; o += kLanes) {
    F32 most = {};
    for (int k = 0; k < kTile; ++k) most = max(abs(load<F32>(tile + k * kPanel + o)), most);
    if (!(reduce_max(most) < 127.0f * 65504.0f)) return false;
    const F32 scale = through_f16(most / 127.0f, packed + kInt8Scales + 2 * o);
    const F32 inverse = select(scale > 0.0f, 1.0f / scale, F32{});
    for (int k = 0; k < kTile; k += 4) {
      I32 quads = {};
      for (int i = 0; i < 4; ++i) {
        const F32 scaled = load<F32>(tile + (k + i) * kPanel + o) * inverse;
        const F32 rounded = round_small(min(max(scaled, broadcast(-127.0f)), broadcast(127.0f)));
        quads |= (__builtin_convertvector(rounded, I32) + kInt8Zero) << (8 * i);
      }
      store(packed + (k * kPanel / 4 + o) * 4, quads);
    }
  }
  return all_finite(tile);
}

// Scales of kLanes groups of int6 or int4, and their zero points in units of q.
struct Affine {
  F32 scale, inverse, zero;
};

template <int kBits>
RUSHLIGHT_INLINE Affine affine_of(I32 groups) {
  const F32 scale = as_f32((reinterpret_cast<U32>(groups) << kScaleShift) + kLeastScale);
  return {scale, 1.0f / scale, to_f32(groups & ((1 << kZeroBits) - 1)) * kZeroStep<kBits>};
}

template <int kBits>
inline constexpr float kMost = (1 << kBits) - 1;

template <int kBits>
RUSHLIGHT_INLINE F32 nearest_q(F32 scaled) {
  return round_small(min(max(scaled, F32{}), broadcast(kMost<kBits>)));
}

RUSHLIGHT_INLINE I32 to_i32(F32 v) { return __builtin_convertvector(v, I32); }

// The search for the group with the least squared error tries kScales scales, of neighbouring exponents and first bits of
// the mantissa, from one that holds kSlack times the range of the weights down, and with each kZeros neighbouring zero
// points, in the middle of those.
template <int kBits>
inline constexpr int kScales = kBits == 4 ? 10 : 6;
template <int kBits>
inline constexpr float kSlack = kBits == 4 ? 1.06f : 1.04f;
inline constexpr int kZeros = 8;

template <int kBits>
RUSHLIGHT_INLINE I32 best_group(const float* column, I32 first, F32 middle) {
  constexpr int kZeroPoints = 1 << kZeroBits;
  I32 best = {};
  F32 least = broadcast(__builtin_inff());
  for (int i = 0; i < kScales<kBits>; ++i) {
    const I32 upper = (first - i < 0 ? I32{} : first - i) << kZeroBits;
    const F32 center = kMost<kBits> / 2 - middle * affine_of<kBits>(upper | kZeroPoints / 2).inverse;
    const F32 bounded = min(max(center * (1.0f / kZeroStep<kBits>), F32{}), broadcast(float{kZeroPoints - 1}));
    I32 groups[kZeros];
    Affine fits[kZeros];
    F32 errors[kZeros];
    for (int z = 0; z < kZeros; ++z) {
      const I32 zero = to_i32(round_small(bounded)) + (z + 1 - kZeros / 2);
      groups[z] = upper | (zero < 0 ? I32{} : zero > kZeroPoints - 1 ? I32{} + (kZeroPoints - 1) : zero);
      fits[z] = affine_of<kBits>(groups[z]);
      errors[z] = F32{};
    }
    for (int k = 0; k < kTile; ++k) {
      const F32 w = load<F32>(column + k * kPanel);
#pragma GCC unroll 8
      for (int z = 0; z < kZeros; ++z) {
        const F32 scaled = w * fits[z].inverse + fits[z].zero, off = nearest_q<kBits>(scaled) - scaled;
        errors[z] += off * off;
      }
    }
    for (int z = 0; z < kZeros; ++z) {
      const F32 error = errors[z] * (fits[z].scale * fits[z].scale);
      best = error < least ? groups[z] : best;
      least = min(error, least);
    }
  }
  return best;
}

// int6 and int4.
template <int kBits>
bool pack_affine(const float* tile, uint8_t* packed) {
  if (!all_finite(tile)) return false;
  for (int o = 0; o < kPanel; o += kLanes) {
    const float* column = tile + o;
    F32 least = {}, most = {};  // with 0 among the weights, because zero points lie in the range of q
    for (int k = 0; k < kTile; ++k) {
      const F32 w = load<F32>(column + k * kPanel);
      least = min(w, least), most = max(w, most);
    }
    const F32 scale = (most - least) * (kSlack<kBits> / kMost<kBits>);
    if (!(reduce_max(scale) < kScaleLimit)) return false;
    const I32 first = (as_i32(scale) - static_cast<int32_t>(kLeastScale)) >> (kScaleShift + kZeroBits);
    const I32 groups = best_group<kBits>(column, first, (least + most) * 0.5f);
    store(packed + kGroups<kBits> + 2 * o, __builtin_convertvector(groups, U16));

    const Affine fit = affine_of<kBits>(groups);
    const auto quad = [&](int k) {
      U32 bytes = {};
      for (int i = 0; i < 4; ++i) {
        const F32 q = nearest_q<kBits>(load<F32>(column + (k + i) * kPanel) * fit.inverse + fit.zero);
        bytes |= reinterpret_cast<U32>(to_i32(q)) << (8 * i);
      }
      return bytes;
    };
    for (int k = 0; k < kTile; k += kTile / 2) {
      const U32 quads[] = {quad(k), quad(k + 4), quad(k + 8), quad(k + 12)};
      uint8_t* at = packed + k * kPanel * kBits / 8 + o * 4;
      const auto store_line = [&](int i, U32 line) { store(at + i * kPanel * 4, line); };
      if constexpr (kBits == 4) {
        for (int i = 0; i < 2; ++i) store_line(i, quads[2 * i] | quads[2 * i + 1] << 4);
      } else {
        for (int i = 0; i < 3; ++i) store_line(i, quads[i] | (quads[3] >> (2 * i) & 0x03030303u) << 6);
      }
    }
  }
  return true;
}

}  // namespace rushlight::RUSHLIGHT_ISA
