#include "weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

namespace rushlight {

namespace {

template <class T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// The shifted exponent lacks 127 - 15; the multiplication corrects it and normalises subnormals.
float from_f16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
  const float finite = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : std::bit_cast<uint32_t>(finite);
  return std::bit_cast<float>(bits | sign);
}

float element(const uint8_t* bytes, Source::Dtype dtype) {
  switch (dtype) {
    case Source::Dtype::kF32: return read<float>(bytes);
    case Source::Dtype::kF16: return from_f16(read<uint16_t>(bytes));
    case Source::Dtype::kBF16: return from_bf16(read<uint16_t>(bytes));
    case Source::Dtype::kF64: return static_cast<float>(read<double>(bytes));
  }
  return 0;
}

// Consecutive elements to floats that are `step` apart.
template <Source::Dtype kDtype>
void decode(const uint8_t* from, int64_t n, float* to, int64_t step) {
  const size_t size = Source::item_bytes(kDtype);
  for (int64_t i = 0; i < n; ++i) to[i * step] = element(from + static_cast<size_t>(i) * size, kDtype);
}

// q is a function of the input.
template <int kBits, class Q>
void unpack_group(const uint8_t* tile, int o, int n, float* values, Q&& q) {
  const uint32_t group = read<uint16_t>(tile + kGroups<kBits> + 2 * o);
  const float scale = std::bit_cast<float>((group << kScaleShift) + kLeastScale);
  const float zero = static_cast<float>(group & ((1u << kZeroBits) - 1)) * kZeroStep<kBits>;
  for (int k = 0; k < n; ++k) values[k] = scale * (static_cast<float>(q(k)) - zero);
}

// The first n inputs of output o of a tile.
void unpack(const uint8_t* tile, Format format, int o, int n, float* values) {
  switch (format) {
    case Format::kF32:
      for (int k = 0; k < n; ++k) values[k] = read<float>(tile + (k * kPanel + o) * 4);
      break;
    case Format::kF16:
      for (int k = 0; k < n; ++k) values[k] = from_f16(read<uint16_t>(tile + (k * kPanel + o) * 2));
      break;
    case Format::kBF16:
      for (int k = 0; k < n; ++k) {
        values[k] = from_bf16(read<uint16_t>(tile + ((k / 2 * kPanel + o) * 2 + k % 2) * 2));
      }
      break;
    case Format::kInt8: {
      const float scale = from_f16(read<uint16_t>(tile + kInt8Scales + 2 * o));
      for (int k = 0; k < n; ++k) {
        values[k] = static_cast<float>(tile[(k / 4 * kPanel + o) * 4 + k % 4] - kInt8Zero) * scale;
      }
      break;
    }
    case Format::kInt6:
      unpack_group<6>(tile, o, n, values, [tile, o](int k) {
        const uint8_t* quads = tile + static_cast<size_t>(k / 16) * kInt6Half + o * 4 + k % 4;
        const auto quad = [&](int i) { return quads[i * kPanel * 4]; };
        const int i = k / 4 % 4;
        return i < 3 ? quad(i) & 63 : quad(0) >> 6 | quad(1) >> 6 << 2 | quad(2) >> 6 << 4;
      });
      break;
    case Format::kInt4:
      unpack_group<4>(tile, o, n, values, [tile, o](int k) {
        const int byte = tile[(k / 8 * kPanel + o) * 4 + k % 4];
        return k % 8 < 4 ? byte & 15 : byte >> 4;
      });
      break;
  }
}

}  // namespace

void Weight::gather(int output, float* values) const {
  for (int k = 0; k < n_in; k += kTile) {
    unpack(tile(output / kPanel, k / kTile), format, output % kPanel, std::min(kTile, n_in - k), values + k);
  }
}

Source::Dtype Source::dtype_of(std::string_view name) {
  if (name == "F32") return Dtype::kF32;
  if (name == "F16") return Dtype::kF16;
  if (name == "BF16") return Dtype::kBF16;
  if (name == "F64") return Dtype::kF64;
  throw std::invalid_argument("not a floating-point dtype: " + std::string(name));
}

size_t Source::item_bytes(Dtype dtype) {
  return dtype == Dtype::kF64 ? 8 : dtype == Dtype::kF32 ? 4 : 2;
}

void Source::read_tile(int64_t row, int64_t column, float* tile, const Kernels& kernels) const {
  const int64_t n_rows = std::min<int64_t>(kTile, rows - row), n_columns = std::min<int64_t>(kTile, columns - column);
  const size_t item = item_bytes(dtype);
  const bool whole = n_rows == kTile && n_columns == kTile;
  if (const auto read_whole = kernels.read_tile[static_cast<int>(dtype)]; whole && read_whole != nullptr) {
    const size_t row_bytes = static_cast<size_t>(columns) * item;
    return read_whole(bytes + static_cast<size_t>(row) * row_bytes + static_cast<size_t>(column) * item, row_bytes,
                      rows_are_inputs, tile);
  }
  if (!whole) std::fill_n(tile, kTile * kPanel, 0.0f);
  for (int64_t r = 0; r < n_rows; ++r) {
    const uint8_t* from = bytes + static_cast<size_t>((row + r) * columns + column) * item;
    float* to = tile + (rows_are_inputs ? r * kPanel : r);
    const int64_t step = rows_are_inputs ? 1 : kPanel;
    switch (dtype) {
      case Dtype::kF32: decode<Dtype::kF32>(from, n_columns, to, step); break;
      case Dtype::kF16: decode<Dtype::kF16>(from, n_columns, to, step); break;
      case Dtype::kBF16: decode<Dtype::kBF16>(from, n_columns, to, step); break;
      case Dtype::kF64: decode<Dtype::kF64>(from, n_columns, to, step); break;
    }
  }
}

}  // namespace rushlight
