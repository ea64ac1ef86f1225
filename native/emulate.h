// Emulates AVX-512 with AVX2, so that tests can run its kernels on any x86-64 machine: the intrinsics that simd.h and
// linear.h call, as Intel's Software Developer's Manual, volume 2, defines them. The compiler itself splits vectors of
// 64 bytes in two. Replaces the compiler's header where RUSHLIGHT_EMULATE_AVX512 is defined;
// RUSHLIGHT_EMULATE_VNNI_BF16 adds the instructions of those extensions.
#pragma once

#include <immintrin.h>

// After the header, which would otherwise assume that the compiler may use these instructions.
#define __AVX512F__ 1
#if defined(RUSHLIGHT_EMULATE_VNNI_BF16)
#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1
#endif
#if defined(RUSHLIGHT_EMULATE_AMX)
#define __AMX_BF16__ 1
#endif
#undef _mm512_cvtps_ph  // a macro in some compilers

namespace rushlight::RUSHLIGHT_ISA {

#define RUSHLIGHT_EMULATED [[gnu::always_inline, maybe_unused]] static inline

// Both AVX2 and AVX-512 work within lanes of 128 bits, so that one instruction is two.

struct Floats {
  __m256 low, high;
};

struct Ints {
  __m256i low, high;
};

struct Halves {
  __m128i low, high;
};

RUSHLIGHT_EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto x = __builtin_bit_cast(Floats, a), y = __builtin_bit_cast(Floats, b), z = __builtin_bit_cast(Floats, c);
  const Floats sum = {_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
  return __builtin_bit_cast(__m512, sum);
}

RUSHLIGHT_EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
  const auto x = __builtin_bit_cast(Halves, a);
  const Floats floats = {_mm256_cvtph_ps(x.low), _mm256_cvtph_ps(x.high)};
  return __builtin_bit_cast(__m512, floats);
}

RUSHLIGHT_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
  const auto x = __builtin_bit_cast(Halves, a);
  const Ints ints = {_mm256_cvtepu16_epi32(x.low), _mm256_cvtepu16_epi32(x.high)};
  return __builtin_bit_cast(__m512i, ints);
}

RUSHLIGHT_EMULATED __m256i _mm512_cvtps_ph(__m512 a, int rounding) {
  const auto x = __builtin_bit_cast(Floats, a);
  const Halves halves = {_mm256_cvtps_ph(x.low, rounding), _mm256_cvtps_ph(x.high, rounding)};
  return __builtin_bit_cast(__m256i, halves);
}

RUSHLIGHT_EMULATED __m512i _mm512_setzero_si512() { return __m512i{}; }

RUSHLIGHT_EMULATED __m512i _mm512_set1_epi16(short a) {
  const Ints ints = {_mm256_set1_epi16(a), _mm256_set1_epi16(a)};
  return __builtin_bit_cast(__m512i, ints);
}

RUSHLIGHT_EMULATED __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  const auto x = __builtin_bit_cast(Ints, a), y = __builtin_bit_cast(Ints, b);
  const Ints sum = {_mm256_add_epi16(x.low, y.low), _mm256_add_epi16(x.high, y.high)};
  return __builtin_bit_cast(__m512i, sum);
}

RUSHLIGHT_EMULATED __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  const auto x = __builtin_bit_cast(Ints, a), y = __builtin_bit_cast(Ints, b);
  const Ints sums = {_mm256_madd_epi16(x.low, y.low), _mm256_madd_epi16(x.high, y.high)};
  return __builtin_bit_cast(__m512i, sums);
}

RUSHLIGHT_EMULATED __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  const auto x = __builtin_bit_cast(Ints, a), y = __builtin_bit_cast(Ints, b);
  const Ints sums = {_mm256_maddubs_epi16(x.low, y.low), _mm256_maddubs_epi16(x.high, y.high)};
  return __builtin_bit_cast(__m512i, sums);
}

#if defined(RUSHLIGHT_EMULATE_VNNI_BF16)

using Lanes = uint32_t __attribute__((vector_size(64)));
using SignedLanes = int32_t __attribute__((vector_size(64)));

// VPDPBUSD: adds to each lane four products of an unsigned byte of a and a signed byte of b; the sum wraps around.
RUSHLIGHT_EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  auto lanes = reinterpret_cast<Lanes>(sum);
  for (int shift = 24; shift >= 0; shift -= 8) {
    const Lanes x = reinterpret_cast<Lanes>(a) << (24 - shift) >> 24;
    const SignedLanes y = reinterpret_cast<SignedLanes>(reinterpret_cast<Lanes>(b) << (24 - shift)) >> 24;
    lanes += x * reinterpret_cast<Lanes>(y);
  }
  return reinterpret_cast<__m512i>(lanes);
}

// Flushes subnormal floats to zeros of their sign, as bf16 instructions do with inputs and results whatever MXCSR says.
RUSHLIGHT_EMULATED Lanes flushed(Lanes bits) {
  const auto normal = reinterpret_cast<Lanes>((bits & 0x7f800000u) != 0);
  return bits & (normal | 0x80000000u);
}

// VCVTNEPS2BF16: to nearest, ties to even; a NaN becomes a quiet NaN.
RUSHLIGHT_EMULATED __m256bh _mm512_cvtneps_pbh(__m512 a) {
  const Lanes bits = flushed(reinterpret_cast<Lanes>(a));
  const Lanes nearest = bits + 0x7fffu + (bits >> 16 & 1u);  // of infinity it changes no upper bit
  const Lanes rounded = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : nearest;
  using Halves16 = uint16_t __attribute__((vector_size(32)));
  return reinterpret_cast<__m256bh>(__builtin_convertvector(rounded >> 16, Halves16));
}

RUSHLIGHT_EMULATED Lanes fma_flushed(Lanes a, Lanes b, Lanes c) {
  const auto x = reinterpret_cast<__m512>(flushed(a)), y = reinterpret_cast<__m512>(flushed(b));
  return flushed(reinterpret_cast<Lanes>(_mm512_fmadd_ps(x, y, reinterpret_cast<__m512>(c))));
}

// VDPBF16PS: adds to each lane the product of the pair's upper values, then that of the lower ones, each with one
// rounding. (Not emulated: a result that only rounding lifts to the smallest normal number is flushed to zero.)
RUSHLIGHT_EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  Lanes lanes = flushed(reinterpret_cast<Lanes>(sum));
  const auto x = reinterpret_cast<Lanes>(a), y = reinterpret_cast<Lanes>(b);
  lanes = fma_flushed(x & 0xffff0000u, y & 0xffff0000u, lanes);
  return reinterpret_cast<__m512>(fma_flushed(x << 16, y << 16, lanes));
}

#endif

#if defined(RUSHLIGHT_EMULATE_AMX)

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps

// The tile registers of a thread: their shapes, and 16 rows of 64 bytes each.
struct TileRegisters {
  int rows[8], row_bytes[8];
  alignas(64) uint8_t bytes[8][16][64];
};

inline thread_local TileRegisters tiles;

// Neither reads nor clears registers that no shape was loaded for, where the processor raises an exception.
RUSHLIGHT_EMULATED void check_tile(int i) {
  if (tiles.rows[i] == 0) __builtin_trap();
}

RUSHLIGHT_EMULATED void _tile_zero(int to) {
  check_tile(to);
  __builtin_memset(tiles.bytes[to], 0, sizeof tiles.bytes[to]);
}

RUSHLIGHT_EMULATED void _tile_release() { __builtin_memset(&tiles, 0, sizeof tiles); }

RUSHLIGHT_EMULATED void _tile_loadconfig(const void* from) {
  _tile_release();
  const auto* config = static_cast<const uint8_t*>(from);
  for (int i = 0; i < 8; ++i) {
    tiles.rows[i] = config[48 + i];
    tiles.row_bytes[i] = config[16 + 2 * i] | config[17 + 2 * i] << 8;
  }
}

RUSHLIGHT_EMULATED void _tile_loadd(int to, const void* from, size_t stride) {
  _tile_zero(to);
  for (int i = 0; i < tiles.rows[to]; ++i) {
    __builtin_memcpy(tiles.bytes[to][i], static_cast<const uint8_t*>(from) + i * stride,
                     static_cast<size_t>(tiles.row_bytes[to]));
  }
}

RUSHLIGHT_EMULATED void _tile_stored(int from, void* to, size_t stride) {
  check_tile(from);
  for (int i = 0; i < tiles.rows[from]; ++i) {
    __builtin_memcpy(static_cast<uint8_t*>(to) + i * stride, tiles.bytes[from][i],
                     static_cast<size_t>(tiles.row_bytes[from]));
  }
}

// TDPBF16PS: the sums of the even and of the odd ones of a row's values, in order, with one rounding for each product;
// then of both, and with what the register holds. Subnormal values are zeros.
RUSHLIGHT_EMULATED void _tile_dpbf16ps(int to, int a, int b) {
  check_tile(to), check_tile(a), check_tile(b);
  const auto add = [](Lanes x, Lanes y) {
    return flushed(reinterpret_cast<Lanes>(reinterpret_cast<__m512>(x) + reinterpret_cast<__m512>(y)));
  };
  for (int m = 0; m < tiles.rows[to]; ++m) {
    Lanes even = {}, odd = {}, sum;
    for (int k = 0; k < tiles.row_bytes[a] / 4; ++k) {
      uint32_t pair;
      __builtin_memcpy(&pair, tiles.bytes[a][m] + 4 * k, 4);
      Lanes weights;
      __builtin_memcpy(&weights, tiles.bytes[b][k], 64);
      const Lanes pairs = pair - Lanes{};
      even = fma_flushed(pairs << 16, weights << 16, even);
      odd = fma_flushed(pairs & 0xffff0000u, weights & 0xffff0000u, odd);
    }
    __builtin_memcpy(&sum, tiles.bytes[to][m], 64);
    sum = add(flushed(sum), add(even, odd));
    __builtin_memcpy(tiles.bytes[to][m], &sum, 64);
  }
}

#endif

#undef RUSHLIGHT_EMULATED

}  // namespace rushlight::RUSHLIGHT_ISA
