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
//     int6   for each half of k: uint8 [3 quads of k][32 o][4 k], in the upper two bits of each two bits of the fourth
//            quad, from the lowest on; then uint16 group[32 o]:                          w = scale · (q - zero)
//     int4   uint8 [4 octets of k][32 o][4 k], low halves the first quad of k, high the second;
//            then uint16 group[32 o]:                                                    w = scale · (q - zero)
//
// The 16 bits of a group, of 32 inputs of one output, are its scale: a float without sign, with 5 bits of exponent and 11
// of mantissa. The last 7 bits of the mantissa, which a scale can do without, are also the zero point: a position in the
// range of q, in steps of a 128th of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rushlight {

inline constexpr int kPanel = 32;
inline constexpr int kTile = 32;

// To be incremented whenever the layout or the meaning of a tile changes: packed weights are read back only by the version
// that wrote them.
inline constexpr int kTileVersion = 1;

enum class Format : uint8_t { kF32, kF16, kBF16, kInt8, kInt6, kInt4 };
inline constexpr int kFormats = 6;
inline constexpr const char* kFormatNames[kFormats] = {"f32", "f16", "bf16", "int8", "int6", "int4"};

inline constexpr size_t kTileBytes[kFormats] = {4096, 2048, 2048, 1024 + 64, 768 + 64, 512 + 64};

inline constexpr int kInt8Zero = 128;
inline constexpr size_t kInt8Scales = 1024;  // offset of the scales in a tile
inline constexpr size_t kInt6Half = 384;      // bytes of half the inputs of a tile

// int6 and int4.
template <int kBits>
inline constexpr size_t kGroups = kTile * kPanel * kBits / 8;  // offset of the groups in a tile
inline constexpr int kZeroBits = 7;
template <int kBits>
inline constexpr float kZeroStep = static_cast<float>(1 << kBits) / static_cast<float>(1 << kZeroBits);
// A scale as the bits of a float: (group << kScaleShift) + kLeastScale. They are 2^-24 to 2^8.
inline constexpr int kScaleShift = 23 + 5 - 16;
inline constexpr uint32_t kLeastScale = uint32_t{127 - 24} << 23;
inline constexpr float kScaleLimit = 256;

// 32 activations of a row, quantised for the integer formats: x ≈ scale · q.
template <int kBits>
struct QuantizedGroup {  // of int6 and int4
  int8_t q[kTile];
  float scale;
  float sum;  // of -kZeroStep · q: the factor of a zero point
};

template <>
struct QuantizedGroup<8> {
  int8_t q[kTile];
  float scale;
  int32_t sum;  // of -kInt8Zero · q: the initial value of a sum of byte · q
};

}  // namespace rushlight
