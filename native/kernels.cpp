// Compiled once for each instruction set, with RUSHLIGHT_ISA its name and the compiler's flags its instructions.
#include "kernels.h"

#include "activation.h"
#if defined(__AMX_BF16__)
#include "amx.h"
#endif
#include "attention.h"
#include "linear.h"
#include "maxima.h"
#include "norm.h"
#include "pack.h"
#include "peak.h"
#include "read.h"
#include "rotary.h"

#define RUSHLIGHT_STRING_(name) #name
#define RUSHLIGHT_STRING(name) RUSHLIGHT_STRING_(name)

namespace rushlight::RUSHLIGHT_ISA {

template <class Kernel, Format kFormat>
constexpr LinearKernels linear_kernels(bool (*pack)(const float*, uint8_t*)) {
  if constexpr (requires { Kernel::prepare; }) {
    return {Kernel::prepare, Kernel::prepared_bytes, run_linear<Kernel, kFormat>, pack};
  } else {
    return {nullptr, nullptr, run_linear<Kernel, kFormat>, pack};
  }
}

template <class Element>
constexpr AttentionKernels attention_kernels() {
  using Kernel = Attention<Element>;
  return {Kernel::run, Kernel::run_chain, Kernel::merge};
}

extern const Kernels kKernels;
const Kernels kKernels = {
    .name = RUSHLIGHT_STRING(RUSHLIGHT_ISA),
    .read_tile = {read_tile<load<F32>, 4>, read_tile<load_f16, 2>, read_tile<load_bf16, 2>, nullptr},
    .linear = {linear_kernels<F32Kernel, Format::kF32>(pack_f32), linear_kernels<F16Kernel, Format::kF16>(pack_f16),
#if defined(__AMX_BF16__)
               {TileBF16Kernel::prepare, TileBF16Kernel::prepared_bytes, TileBF16Kernel::run, pack_bf16},
#else
               linear_kernels<BF16Kernel, Format::kBF16>(pack_bf16),
#endif
               linear_kernels<Integer<8>, Format::kInt8>(pack_int8),
               linear_kernels<Integer<6>, Format::kInt6>(pack_affine<6>),
               linear_kernels<Integer<4>, Format::kInt4>(pack_affine<4>)},
    .exact_bf16 = linear_kernels<Plain<Format::kBF16>, Format::kBF16>(pack_bf16),
    .add = add,
    .multiply = multiply,
    .scale = scale,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .rotary = {rotary<false>, rotary<true>},
    .activation = {map<GeluTanh>, map<GeluErf>, map<Relu>, map<Silu>, map<QuickGelu>, map<Sigmoid>,
                   map<Tanh>},
    .store_kv = {store_kv<float>, store_kv<Half>},
    .attention = {attention_kernels<float>(), attention_kernels<Half>()},
    .exp = map<Exp>,
    .maxima = maxima,
    .weights = weights,
    .read = read,
    .peak = {peak<Format::kF32>, peak<Format::kF16>,
#if defined(__AMX_BF16__)
             peak_of_tiles,
#else
             peak<Format::kBF16>,
#endif
             peak<Format::kInt8>, peak<Format::kInt6>, peak<Format::kInt4>},
};

}  // namespace rushlight::RUSHLIGHT_ISA
