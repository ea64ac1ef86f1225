// The kernels of an instruction set: a table of functions over plain memory, without threads or ownership.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "panel.h"

namespace rushlight {

// y = x W + bias for some panels and rows. Rows of y are padded to whole panels.
struct LinearJob {
  const uint8_t* panels;
  size_t panel_bytes;
  int n_in;
  const void* x;  // floats, or the output of `prepare`
  size_t x_stride_bytes;
  float* y;
  size_t y_stride;
  const float* bias;  // padded to whole panels, or null
};

struct LinearKernels {
  // Converts a row of floats to the form that `run` reads, of prepared_bytes(n_in). Null where `run` reads floats.
  void (*prepare)(const float* x, int n_in, void* prepared);
  size_t (*prepared_bytes)(int n_in);
  void (*run)(const LinearJob& job, int panel_begin, int panel_end, int row_begin, int row_end);
  // Packs a tile of float [32 k][32 o] in the format. False if a value is beyond the format's range.
  bool (*pack)(const float* tile, uint8_t* packed);
};

// The dtypes of checkpoints.
enum class SourceDtype : uint8_t { kF32, kF16, kBF16, kF64 };
inline constexpr int kSourceDtypes = 4;

// Attention of one sequence and one key/value head, which a group of query heads shares: query i is head i % group of
// row i / group. A block has keys [head][D][64] and values [head][64][value_stride], so that both products of attention
// run along rows. Strides of the cache count elements, which are floats or halves.
struct AttentionJob {
  const float* q;  // of the sequence's first row and the group's first head
  size_t q_stride;
  float* out;
  size_t out_stride;
  const void* keys;  // of this layer and head, in block 0
  const void* values;
  size_t block_stride;  // from one block to the next
  size_t value_stride;  // from one position to the next
  const int32_t* blocks;
  int position;  // of the sequence's first row
  int head_dim;
  int group;
  float scale;
  int window;           // positions that a row sees, its own the last
  float softcap;        // scores become softcap · tanh(score / softcap); 0 leaves them
  const float* slopes;  // [group]: slope · (key position - own position) is added to a score; or null
};

inline constexpr int kBlock = 64;             // positions in a block of the cache
inline constexpr int kAttentionQueries = 48;  // queries that share a pass over the cache
inline constexpr int kTogether = 6;           // of them, those that are multiplied together, loading a key once
inline constexpr int kNoWindow = std::numeric_limits<int>::max();

// Keys and values may be in the first of the formats: f32 and f16.
inline constexpr int kKVFormats = 2;

// The blocks whose values are summed in one chain, counted from position 0. The softmaxes of several chains are merged:
// over thousands of positions, a single chain would round more than the sums of PyTorch do, and chains of one row can
// be computed on several threads.
inline constexpr int kChainBlocks = 8;
inline constexpr int kChain = kChainBlocks * kBlock;  // positions

// Floats of the softmax of queries over a chain.
inline size_t attention_state(size_t n_queries, size_t value_stride) {
  return 2 * kAttentionQueries + n_queries * value_stride;
}

// Floats of scratch that kernels of attention need.
inline size_t attention_scratch(size_t value_stride) {
  return kTogether * kBlock + kAttentionQueries * value_stride + 2 * attention_state(kAttentionQueries, value_stride);
}

// Attention of queries query_begin to query_end of a sequence, at most kAttentionQueries of them: the whole, or chain by
// chain with the same result.
struct AttentionKernels {
  void (*run)(const AttentionJob& job, int query_begin, int query_end, float* scratch);
  // Writes the softmax over one chain to `state`.
  void (*run_chain)(const AttentionJob& job, int query_begin, int query_end, int chain, float* state, float* scratch);
  // Merges the states of all chains that the queries see, and writes the result.
  void (*merge)(const AttentionJob& job, int query_begin, int query_end, int first_chain, int n_chains, float* states,
                size_t states_step, float* scratch);
};

enum class ActivationKind : uint8_t { kGeluTanh, kGeluErf, kRelu, kSilu, kQuickGelu, kSigmoid, kTanh };
inline constexpr int kActivations = 7;
inline constexpr const char* kActivationNames[kActivations] = {"gelu_tanh",  "gelu_erf", "relu", "silu",
                                                               "quick_gelu", "sigmoid",  "tanh"};

inline constexpr int kSegment = 64;  // logits with a common maximum
inline constexpr int kPart = 256;    // weights with a common sum

struct Kernels {
  const char* name;
  // Converts a tile of a checkpoint's matrix to float [32 k][32 o]. Null for f64, which is rare.
  void (*read_tile[kSourceDtypes])(const uint8_t* from, size_t row_bytes, bool rows_are_inputs, float* tile);
  LinearKernels linear[kFormats];
  // bf16 weights with activations in f32: the same bits on every instruction set. Sets with instructions for bf16 round
  // the activations to it in `linear`.
  LinearKernels exact_bf16;
  void (*add)(const float* a, const float* b, float* out, int n);
  void (*multiply)(const float* a, const float* b, float* out, int n);
  void (*scale)(const float* x, float factor, float* out, int n);
  // A null bias adds nothing.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* out, int n);
  void (*rms_norm)(const float* x, const float* weight, float eps, float offset, float* out, int n);
  // The rotary embedding of a row of heads by n_rotated / 2 cosines, then as many sines. The other channels are copied.
  void (*rotary[2])(const float* x, const float* angles, int n_head, int head_dim, int n_rotated, float* out);
  void (*activation[kActivations])(const float* x, float* out, int n);
  // Stores the key and the value of one position and head, D floats each, into their places in a block: the elements of
  // the key are kBlock apart. A value that is not finite in the cache's format becomes NaN.
  void (*store_kv[kKVFormats])(const float* k, const float* v, int head_dim, void* key, void* value);
  AttentionKernels attention[kKVFormats];
  // exp of n floats, for tests.
  void (*exp)(const float* x, float* out, int n);
  // The maximum of each segment of kSegment floats, the last of which may be shorter. False if a float is NaN.
  bool (*maxima)(const float* x, int n, float* out);
  // out[i] = exp((x[i] - most) * factor); sums[i] = the sum of part i of kPart weights, the last of which may be shorter.
  void (*weights)(const float* x, int n, float most, float factor, float* out, double* sums);
  // Reads a multiple of 64 bytes and returns a checksum.
  uint32_t (*read)(const uint8_t* from, size_t bytes);
  // Multiplies and adds in registers as products of a format do, and returns the number of operations.
  int64_t (*peak[kFormats])(int64_t parts);

  const LinearKernels& exact_of(Format format) const {
    return format == Format::kBF16 ? exact_bf16 : linear[static_cast<int>(format)];
  }
};

}  // namespace rushlight
