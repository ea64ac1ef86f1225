// The memory layout of weights: the same for every instruction set, for decode and for prefill.
//
// A weight of n_out × n_in is divided into panels of 32 outputs, and a panel into tiles of 32 inputs. Each tile is
// contiguous, so that a panel is one sequential stream and each output is one lane of a vector. Outputs and inputs are
// padded with zeros. A tile is, with k its inputs and o its outputs:
//
//     f32    float [32 k][32 o]
//     f16    half  [32 k][32 o]
//     bf16   bf16  [16 pairs of k][32 o][2 k]
//     int8   uint8 [8 quads of k][32 o][4 k], value + 128; then half scale[32 o]:        w = scale · (byte - 128)
//     int4   uint8 [4 octets of k][32 o][4 k], low halves the first quad of k, high the second;
//            then half scale[32 o], half minimum[32 o]:                                  w = scale · nibble + minimum
#pragma once

#include <cstddef>
#include <cstdint>

namespace rushlight {

inline constexpr int kPanel = 32;
inline constexpr int kTile = 32;

enum class Format : uint8_t { kF32, kF16, kBF16, kInt8, kInt4 };
inline constexpr int kFormats = 5;
inline constexpr const char* kFormatNames[kFormats] = {"f32", "f16", "bf16", "int8", "int4"};

inline constexpr size_t kTileBytes[kFormats] = {4096, 2048, 2048, 1024 + 64, 512 + 64 + 64};

inline constexpr int kInt8Zero = 128;
inline constexpr size_t kInt8Scales = 1024;   // offset of the scales in a tile
inline constexpr size_t kInt4Scales = 512;
inline constexpr size_t kInt4Minima = 512 + 64;

// 32 activations of a row, quantised for the integer formats: x ≈ scale · q.
template <int kBits>
struct QuantizedGroup;

template <>
struct QuantizedGroup<8> {
  int8_t q[kTile];
  float scale;
  int32_t sum;  // of -kInt8Zero · q: the initial value of a sum of byte · q
};

template <>
struct QuantizedGroup<4> {
  int8_t q[kTile];
  float scale;
  float sum;  // of scale · q: the factor of a minimum
};

}  // namespace rushlight
