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

struct Affine {
  F32 scale, minimum;
};

RUSHLIGHT_INLINE F32 nibble(F32 w, F32 inverse, F32 minimum) {
  return round_small(min(max((w - minimum) * inverse, F32{}), broadcast(15.0f)));
}

RUSHLIGHT_INLINE F32 reciprocal(F32 scale) { return select(scale != 0.0f, 1.0f / scale, F32{}); }

RUSHLIGHT_INLINE F32 squared_error(const float* column, Affine fit) {
  const F32 inverse = reciprocal(fit.scale);
  F32 error = {};
  for (int k = 0; k < kTile; ++k) {
    const F32 w = load<F32>(column + k * kPanel);
    const F32 off = fma(nibble(w, inverse, fit.minimum), fit.scale, fit.minimum) - w;
    error = fma(off, off, error);
  }
  return error;
}

// The scale and minimum that fit the nibbles that `fit` rounds to, by least squares.
RUSHLIGHT_INLINE Affine refit(const float* column, Affine fit) {
  const F32 inverse = reciprocal(fit.scale);
  F32 q_sum = {}, qq_sum = {}, w_sum = {}, qw_sum = {};
  for (int k = 0; k < kTile; ++k) {
    const F32 w = load<F32>(column + k * kPanel), q = nibble(w, inverse, fit.minimum);
    q_sum += q, qq_sum = fma(q, q, qq_sum), w_sum += w, qw_sum = fma(q, w, qw_sum);
  }
  const float n = kTile;
  const F32 determinant = n * qq_sum - q_sum * q_sum;
  const I32 solvable = determinant > 0.0f;
  const F32 scale = (n * qw_sum - q_sum * w_sum) / select(solvable, determinant, broadcast(1.0f));
  return {select(solvable, scale, fit.scale), select(solvable, (w_sum - scale * q_sum) / n, fit.minimum)};
}

// Scale and minimum with the least squared error: candidate ranges from the full one to about two thirds of it, each
// refined by a few rounds of least squares; the best is rounded to half.
inline bool pack_int4(const float* tile, uint8_t* packed) {
  if (!all_finite(tile)) return false;
  for (int o = 0; o < kPanel; o += kLanes) {
    const float* column = tile + o;
    F32 least = load<F32>(column), most = least;
    for (int k = 1; k < kTile; ++k) {
      const F32 w = load<F32>(column + k * kPanel);
      least = min(w, least), most = max(w, most);
    }
    if (!(reduce_max(most - least) < 65504.0f && reduce_max(max(abs(least), abs(most))) < 65504.0f)) return false;
    const F32 width = most - least;
    Affine best = {width / 15.0f, least};
    F32 best_error = squared_error(column, best);
    for (int cut = 0; cut < 16; ++cut) {
      const F32 margin = width * (0.012f * static_cast<float>(cut));
      Affine fit = {(width - 2.0f * margin) / 15.0f, least + margin};
      for (int round = 0; round < 4; ++round) fit = refit(column, fit);
      const F32 error = squared_error(column, fit);
      const I32 better = error < best_error;
      best = {select(better, fit.scale, best.scale), select(better, fit.minimum, best.minimum)};
      best_error = min(error, best_error);
    }
    const F32 scale = through_f16(best.scale, packed + kInt4Scales + 2 * o);
    const F32 minimum = through_f16(best.minimum, packed + kInt4Minima + 2 * o);
    const F32 inverse = reciprocal(scale);
    for (int k = 0; k < kTile; ++k) {
      const I32 q = __builtin_convertvector(nibble(load<F32>(column + k * kPanel), inverse, minimum), I32);
      for (int i = 0; i < kLanes; ++i) {
        uint8_t* byte = packed + (k / 8 * kPanel + o + i) * 4 + k % 4;
        *byte = static_cast<uint8_t>(k % 8 < 4 ? q[i] : *byte | q[i] << 4);
      }
    }
  }
  return true;
}

}  // namespace rushlight::RUSHLIGHT_ISA
