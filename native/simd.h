// The vector types that kernels are written in, for the instruction set this file is compiled for.
//
// Arithmetic, comparison and shifts use the compiler's vector extensions (GCC and Clang). Operations that those lack
// (fused multiply-add, half floats, integer dot products) have one function here per instruction set. Everything is in
// the namespace RUSHLIGHT_ISA because each kernel file is compiled several times into one library: the linker would
// merge functions of the same name, and a machine could execute instructions that it lacks. For the same reason kernels
// call no inline function of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(RUSHLIGHT_EMULATE_AVX512)
#include "emulate.h"
#elif defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && !defined(__FMA__)
#include "fma_sse2.h"
#endif

namespace rushlight::RUSHLIGHT_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
inline constexpr int kRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr int kRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 32;
#else
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 16;
#endif

#if defined(__AMX_BF16__)
inline constexpr bool kHasAMX = true;
#else
inline constexpr bool kHasAMX = false;
#endif

using F32 = float __attribute__((vector_size(kLanes * 4)));
using I32 = int32_t __attribute__((vector_size(kLanes * 4)));
using U32 = uint32_t __attribute__((vector_size(kLanes * 4)));
using U16 = uint16_t __attribute__((vector_size(kLanes * 2)));  // half a register: one value for each lane of F32
using I8 = int8_t __attribute__((vector_size(kLanes)));        // a quarter
using U8 = uint8_t __attribute__((vector_size(kLanes * 4)));   // a full one: four values for each lane

#define RUSHLIGHT_INLINE [[gnu::always_inline]] static inline

template <class V>
RUSHLIGHT_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
RUSHLIGHT_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// Hides a value's origin from the compiler, so that it neither recomputes the value nor reorders its uses.
template <class V>
RUSHLIGHT_INLINE void keep_in_register(V& v) {
#if defined(__AVX512F__) && !defined(RUSHLIGHT_EMULATE_AVX512)
  asm("" : "+v"(v));  // "x" stands for the first 16 registers only
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// The first n lanes, the others 0.
RUSHLIGHT_INLINE F32 load_n(const float* from, int n) {
  F32 v = {};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * 4);
  return v;
}

RUSHLIGHT_INLINE void store_n(float* to, F32 v, int n) { __builtin_memcpy(to, &v, static_cast<size_t>(n) * 4); }

RUSHLIGHT_INLINE F32 broadcast(float x) { return x - F32{}; }  // minus 0, not plus: -0 + 0 is 0
RUSHLIGHT_INLINE I32 broadcast(int32_t x) { return x - I32{}; }

RUSHLIGHT_INLINE F32 to_f32(I32 v) { return __builtin_convertvector(v, F32); }
RUSHLIGHT_INLINE F32 as_f32(U32 bits) { return reinterpret_cast<F32>(bits); }
RUSHLIGHT_INLINE F32 as_f32(I32 bits) { return reinterpret_cast<F32>(bits); }
RUSHLIGHT_INLINE I32 as_i32(F32 v) { return reinterpret_cast<I32>(v); }

RUSHLIGHT_INLINE F32 select(I32 where, F32 yes, F32 no) { return where ? yes : no; }
RUSHLIGHT_INLINE F32 max(F32 a, F32 b) { return select(a > b, a, b); }  // b where either is NaN, as maxps
RUSHLIGHT_INLINE F32 min(F32 a, F32 b) { return select(a < b, a, b); }
RUSHLIGHT_INLINE F32 abs(F32 v) { return as_f32(as_i32(v) & 0x7fffffff); }

// 0, 1, 2, ...
RUSHLIGHT_INLINE I32 lane_index() {
  I32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Halves of two vectors, alternating: of the first halves a[0], b[0], a[1], b[1], ...
template <int... kLane>
struct Interleave {
  RUSHLIGHT_INLINE F32 low(F32 a, F32 b) { return __builtin_shufflevector(a, b, kLane / 2 + kLane % 2 * kLanes...); }
  RUSHLIGHT_INLINE F32 high(F32 a, F32 b) {
    return __builtin_shufflevector(a, b, (kLanes + kLane) / 2 + kLane % 2 * kLanes...);
  }
};

#if defined(__AVX512F__)
using Interleaved = Interleave<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using Interleaved = Interleave<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using Interleaved = Interleave<0, 1, 2, 3>;
#endif

// Transposes kLanes vectors: each step rotates the bits of an element's row and lane, as one number, by one.
RUSHLIGHT_INLINE void transpose(F32 (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    F32 next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = Interleaved::low(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = Interleaved::high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// a b + c with one rounding, on every instruction set.
RUSHLIGHT_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__x86_64__)
  return fma_sse2(a, b, c);
#else
  F32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return v;
#endif
}

#if defined(__AVX512F__)
RUSHLIGHT_INLINE __m256 lower_half(F32 v) {
  return reinterpret_cast<__m256>(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7));
}
RUSHLIGHT_INLINE __m256 upper_half(F32 v) {
  return reinterpret_cast<__m256>(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

// A sum over a row is 16 partial sums, each of every 16th value, whatever the width of a vector: so every instruction
// set adds the same numbers in the same order.
inline constexpr int kSumLanes = 16;
inline constexpr int kSumVectors = kSumLanes / kLanes;

struct PartialSums {
  F32 of[kSumVectors] = {};
};

// The sum of the partial sums, by halves.
RUSHLIGHT_INLINE float reduce_add(const PartialSums& sums) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight = lower_half(sums.of[0]) + upper_half(sums.of[0]);
#else
  const __m256 eight = sums.of[0] + sums.of[1];
#endif
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kSumLanes];
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  for (int n = kSumLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
#endif
}

// The sum of the lanes.
RUSHLIGHT_INLINE int32_t reduce_add(I32 v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 low = lower_half(as_f32(v)), high = upper_half(as_f32(v));
  const __m256i eight = _mm256_add_epi32(_mm256_castps_si256(low), _mm256_castps_si256(high));
#else
  const auto eight = reinterpret_cast<__m256i>(v);
#endif
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
#else
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

RUSHLIGHT_INLINE float reduce_max(F32 v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight = _mm256_max_ps(lower_half(v), upper_half(v));
#else
  const __m256 eight = v;
#endif
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
#else
  float lanes[kLanes];
  store(lanes, v);
  float most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
#endif
}

// Stores 32 integers from -128 to 127 as bytes.
RUSHLIGHT_INLINE void store_bytes(int8_t* to, const I32 (&v)[32 / kLanes]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const auto of = [&](int i) { return reinterpret_cast<__m256i>(v[i]); };
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(of(0), of(1)), _mm256_packs_epi32(of(2), of(3)));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works in each half of the vector
  store(to, _mm256_permutevar8x32_epi32(bytes, order));
#else
  for (int i = 0; i < 32 / kLanes; ++i) store(to + i * kLanes, __builtin_convertvector(v[i], I8));
#endif
}

// Nearest integer, ties to even, for |v| < 2^22.
RUSHLIGHT_INLINE F32 round_small(F32 v) {
  const F32 shift = broadcast(12582912.0f);  // 1.5 × 2^23: the unit of this magnitude is 1
  return (v + shift) - shift;
}

// 16 bits a lane, widened. GCC 12 would widen halves of a vector and put them together.
RUSHLIGHT_INLINE U32 load_u16(const void* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<U32>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
  return reinterpret_cast<U32>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
#else
  return __builtin_convertvector(load<U16>(from), U32);
#endif
}

// IEEE half precision, kLanes values. Exact.
RUSHLIGHT_INLINE F32 load_f16(const void* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  const U32 half = load_u16(from);
  const U32 sign = (half & 0x8000u) << 16;
  const U32 magnitude = half & 0x7fffu;
  // The shifted exponent lacks 127 - 15; the multiplication corrects it and normalises subnormals.
  const F32 finite = as_f32(magnitude << 13) * 0x1p112f;
  const U32 special = (magnitude << 13) | 0x7f800000u;
  const F32 absolute = select(magnitude >= 0x7c00u, as_f32(special), finite);
  return as_f32(reinterpret_cast<U32>(absolute) | sign);
#endif
}

#if !defined(__F16C__)
RUSHLIGHT_INLINE uint16_t to_f16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 aligns the float's last place with that of the half
    float shifted;
    __builtin_memcpy(&shifted, &bits, 4);
    shifted += 0.5f;
    __builtin_memcpy(&bits, &shifted, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t odd = bits >> 13 & 1;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}
#endif

// Floats to halves, to nearest, ties to even; infinity beyond the range.
RUSHLIGHT_INLINE void store_f16(void* to, F32 v) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  U16 halves;
  for (int i = 0; i < kLanes; ++i) halves[i] = to_f16(v[i]);
  store(to, halves);
#endif
}

// Four consecutive activations of a row (signed bytes), in the form that Dot multiplies by.
struct Quad {
#if defined(__AVX2__)
  I32 bytes;
#else
  int32_t x[4];
#endif
};

RUSHLIGHT_INLINE Quad load_quad(const int8_t* x) {
#if defined(__AVX2__)
  int32_t packed;
  __builtin_memcpy(&packed, x, 4);
  return {broadcast(packed)};
#else
  return {{x[0], x[1], x[2], x[3]}};
#endif
}

// Activations are quantised to integers from -kMaxQuantized to kMaxQuantized. AVX2 adds two products of an unsigned and
// a signed byte in 16 bits, which do not overflow with 8-bit weights up to 64: 255 · 64 · 2 = 32,640. A larger range
// would need a second multiplication, and take half as long again. All instruction sets use the same range, for the
// same results.
template <int kBits>
inline constexpr int kMaxQuantized = kBits == 8 ? 64 : 127;

// For each of kLanes outputs the exact sum of w · x over the 32 values of a group, four at a time: w are unsigned bytes
// of kBits bits, four consecutive ones for each output, x signed bytes from -kMaxQuantized to kMaxQuantized.
template <int kBits>
struct Dot;

#if defined(__AVX512VNNI__)

template <int kBits>
struct Dot {
  I32 sum = {};
  RUSHLIGHT_INLINE void add(Dot& dot, U8 w, const Quad& x) {
    const auto of = [](auto v) { return reinterpret_cast<__m512i>(v); };
    dot.sum = reinterpret_cast<I32>(_mm512_dpbusd_epi32(of(dot.sum), of(w), of(x.bytes)));
  }
  RUSHLIGHT_INLINE I32 total(const Dot& dot) { return dot.sum; }
};

#elif defined(__AVX2__)

#if defined(__AVX512F__)
using Bytes = __m512i;
RUSHLIGHT_INLINE Bytes multiply_pairs(Bytes w, Bytes x) { return _mm512_maddubs_epi16(w, x); }
RUSHLIGHT_INLINE Bytes add_words(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
RUSHLIGHT_INLINE Bytes add_pairs(Bytes a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
#else
using Bytes = __m256i;
RUSHLIGHT_INLINE Bytes multiply_pairs(Bytes w, Bytes x) { return _mm256_maddubs_epi16(w, x); }
RUSHLIGHT_INLINE Bytes add_words(Bytes a, Bytes b) {
  Bytes sum = _mm256_add_epi16(a, b);
  keep_in_register(sum);  // otherwise products are added to each other first, which needs too many registers
  return sum;
}
RUSHLIGHT_INLINE Bytes add_pairs(Bytes a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
#endif

template <int kBits>
struct Dot {
  I32 sum = {};
  RUSHLIGHT_INLINE void add(Dot& dot, U8 w, const Quad& x) {
    const Bytes products = multiply_pairs(reinterpret_cast<Bytes>(w), reinterpret_cast<Bytes>(x.bytes));
    dot.sum += reinterpret_cast<I32>(add_pairs(products));
  }
  RUSHLIGHT_INLINE I32 total(const Dot& dot) { return dot.sum; }
};

// 16 products of at most 15 · 127 in a signed word are at most 30,480: no saturation within a group.
template <>
struct Dot<4> {
  Bytes sum = {};
  RUSHLIGHT_INLINE void add(Dot& dot, U8 w, const Quad& x) {
    const Bytes products = multiply_pairs(reinterpret_cast<Bytes>(w), reinterpret_cast<Bytes>(x.bytes));
    dot.sum = add_words(dot.sum, products);
  }
  RUSHLIGHT_INLINE I32 total(const Dot& dot) { return reinterpret_cast<I32>(add_pairs(dot.sum)); }
};

#else

template <int kBits>
struct Dot {
  I32 sum = {};
  RUSHLIGHT_INLINE void add(Dot& dot, U8 w, const Quad& x) {
    const U32 bytes = reinterpret_cast<U32>(w);
    for (int i = 0; i < 4; ++i) dot.sum += reinterpret_cast<I32>((bytes >> (8 * i)) & 255u) * x.x[i];
  }
  RUSHLIGHT_INLINE I32 total(const Dot& dot) { return dot.sum; }
};

#endif

}  // namespace rushlight::RUSHLIGHT_ISA
