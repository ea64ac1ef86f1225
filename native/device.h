// The operations of the CPU backend, which divide kernels over rows and threads.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "array.h"
#include "kernels.h"
#include "load.h"
#include "mapping.h"
#include "memory.h"
#include "pool.h"
#include "sample.h"
#include "weight.h"

namespace rushlight {

class AttentionItems;

// Layers whose keys and values lie in the same blocks, because they see equally many positions.
struct KVGroup {
  int window;  // the most positions that a row sees, or kNoWindow
  int n_blocks;
  bool operator==(const KVGroup&) const = default;
};

// Keys and values of all layers: group by group, and in a group block by block, so that a block takes memory when it is
// first used. In each block a layer's keys are [head][D][64] and its values [head][64][D padded to full vectors]; see
// AttentionJob. Sizes and steps count elements of the format.
struct KVCache {
  // `windows` has one for each layer; layers with the same window are a group, in the order of their first layers.
  // `n_blocks` has a number for each group, or one for all.
  KVCache(Format format, std::span<const int> windows, int n_kv_head, int head_dim, std::span<const int> n_blocks);

  struct Layer {
    int group;
    size_t first, block_step;  // its place in block 0, and the step to the next block
  };

  Format format;
  int n_layer, n_kv_head, head_dim;
  std::vector<KVGroup> groups;
  std::vector<Layer> layers;
  size_t value_stride;
  size_t bytes = 0;
  std::shared_ptr<uint8_t> memory;

  size_t item_bytes() const { return format == Format::kF32 ? 4 : 2; }
  size_t key_head() const { return static_cast<size_t>(head_dim) * kBlock; }
  size_t value_head() const { return value_stride * kBlock; }
  size_t layer_step() const { return static_cast<size_t>(n_kv_head) * (key_head() + value_head()); }
  // The keys and values of a layer and head in a block of the layer's group.
  uint8_t* keys(int layer, int head, size_t block) const { return at(start(layer, block) + head * key_head()); }
  uint8_t* values(int layer, int head, size_t block) const {
    return at(start(layer, block) + n_kv_head * key_head() + head * value_head());
  }
  // Whether blocks and layers are laid out as in another cache.
  bool is_like(const KVCache& other) const;

 private:
  size_t start(int layer, size_t block) const {
    const Layer& of = layers[static_cast<size_t>(layer)];
    return of.first + block * of.block_step;
  }
  uint8_t* at(size_t element) const { return memory.get() + element * item_bytes(); }
};

// A sequence's blocks in a group, by the index of the block: block j holds the positions from j * kBlock. Of a group
// with a window, the blocks that no row of the step sees may be missing (-1).
using BlockTable = std::span<const int32_t>;

// Which sequence each row of a step belongs to: sequence s has rows row_starts[s] to row_starts[s + 1], the first of
// them at position positions[row_starts[s]], and in group g the block table tables[g * S + s]; tables of one group
// serve all. The tables are views: `owner` keeps them.
class Rows {
 public:
  // Throws std::invalid_argument if the arrays are inconsistent, or a block that a row sees is not in the cache.
  Rows(std::span<const int32_t> row_starts, std::span<const int32_t> positions, std::vector<BlockTable> tables,
       const KVCache& cache, std::shared_ptr<const void> owner);

  int n_sequences() const { return static_cast<int>(positions_.size()); }
  int n_rows() const { return row_starts_.back(); }
  const std::vector<KVGroup>& groups() const { return groups_; }
  int begin(int s) const { return row_starts_[s]; }
  int end(int s) const { return row_starts_[s + 1]; }
  int position(int s) const { return positions_[s]; }
  int sequence(int row) const { return sequences_[row]; }
  const int32_t* blocks(int group, int s) const {
    const size_t first = tables_.size() == positions_.size() ? 0 : static_cast<size_t>(group) * positions_.size();
    return tables_[first + static_cast<size_t>(s)].data();
  }
  // Gives up the tables' owner. They stay valid as long as another copy of these rows keeps it.
  void disown() { owner_.reset(); }

 private:
  std::vector<int32_t> row_starts_, positions_, sequences_;
  std::vector<BlockTable> tables_;
  std::vector<KVGroup> groups_;
  std::shared_ptr<const void> owner_;
};

// The scores of attention beyond scale · q · k; see AttentionJob.
struct ScoreOptions {
  int window = kNoWindow;
  const Vector* slopes = nullptr;
  float softcap = 0;
};

// What the items of an operation have to do with those of the operations around it.
enum class Items : uint8_t {
  kOther,
  kRows,    // item i reads and writes row i alone of each array
  kPanels,  // of a product: an item reads whole arrays
};

// The memory that an operation reads and writes, by any address of each array; a cache is its own address.
struct Access {
  Items items;
  std::initializer_list<const void*> reads;
  const void* writes;
  // Of kPanels: the weights of each item, one after the other.
  const uint8_t* weights = nullptr;
  size_t item_bytes = 0;
  // Of attention, whose items depend on the positions.
  AttentionItems* divided = nullptr;
};

// Each operation is complete when it returns. If this thread records a Plan, the operation is added to it.
class Device : public std::enable_shared_from_this<Device> {
 public:
  // Uses n_threads or, if it adapts, as many of them as speed up each operation. With `exact`, results are the same
  // bits on every instruction set, which is slower where one has faster products.
  Device(int n_threads, bool adapts, const Kernels& kernels, bool exact);

  int n_threads() const { return pool_.n_threads(); }
  const char* isa() const { return kernels_.name; }
  // Whether products of weights in this format are the same bits on every instruction set.
  bool is_exact(Format format) const { return linear_kernels(format).prepare == kernels_.exact_of(format).prepare; }

  // An invalid size or shape throws std::invalid_argument, a size beyond memory std::bad_alloc.

  // Memory for a matrix, which `pack` fills.
  Weight weight(Format format, int n_in, int n_out);
  // A matrix whose panels begin at this byte of a file, a multiple of 64, used where they lie.
  Weight weight(Format format, int n_in, int n_out, std::shared_ptr<const Mapping> mapping, int64_t offset);
  // Memory for n floats.
  Vector vector(int64_t n);
  // See load.h. `pack` runs on the caller's thread, `load` on all.
  bool pack(const Source& source, int64_t first, const Weight& weight);
  std::vector<LoadProblem> load(std::span<const Load> loads) { return rushlight::load(loads, kernels_, pool_, hurry_); }
  // From now on, loading uses every thread.
  void hurry() { hurry_ = true; }

  // Reads a weight as a product of one row does, and computes nothing; returns a checksum of every byte.
  uint32_t read(const Weight& weight);
  // Multiplies and adds in registers as products of weights in the format do; returns the number of operations.
  int64_t peak(Format format, int64_t parts);
  // The numbers that products compute with, n_out × n_in.
  void unpack(const Weight& weight, float* values);

  Array array(int64_t rows, int64_t columns);
  Array embedding(std::span<const int32_t> ids, const Weight& table, int64_t first_row);
  Array linear(const Array& x, const Weight& weight, const Vector* bias);
  Array layer_norm(const Array& x, const Vector& weight, const Vector* bias, float eps);
  Array rms_norm(const Array& x, const Vector& weight, float eps, float offset);
  Array angles(std::span<const int32_t> positions, const Vector& frequencies, float scale);
  Array rotary(const Array& x, const Array& angles, int n_head, bool interleaved);
  Array activation(const Array& x, ActivationKind kind);
  Array exp(const Array& x);  // for tests: sampling calls the kernel
  Array add(const Array& a, const Array& b);
  Array multiply(const Array& a, const Array& b);
  Array scale(const Array& x, float factor);
  Array take(const Array& x, std::span<const int32_t> rows);
  // Each row of the result is `size` rows of x side by side, with zeros for -1.
  Array unfold(const Array& x, std::span<const int32_t> rows, int64_t size);
  Array attention(const Array& q, const Array& k, const Array& v, const Rows& rows, const KVCache& cache, int layer,
                  int n_head, float scale, const ScoreOptions& options);

  // Samples a token from each row of logits; see sample.h.
  std::vector<int32_t> sample(const Array& logits, std::span<const SamplingRow> rows);

  // Parts of these sizes, side by side in each of `groups` equal groups of columns. Of one group they are views.
  std::vector<Array> split(const Array& x, std::span<const int64_t> sizes, int64_t groups);
  // Arrays of the same rows side by side.
  Array join(std::span<const Array> parts);

  // To be called before something else than an operation can write to the array's memory.
  void expose(const Array& x);

  // Runs the stages of a plan.
  void run(std::span<const Stage> stages) { pool_.run(stages); }

 private:
  // Calls body(out, begin, end) for parts of 0 to n, which write to `out`. The body outlives this call in a recorded
  // plan: it must own what it reads, or refer to the plan's own data; it holds activations as views. `work` is that of
  // an item, in units that justify a thread.
  template <class Body>
  void share(int64_t n, int64_t min_items, double work, const View& out, const Access& access, Body&& body);
  template <class Body>
  void share(int64_t n, int64_t min_items, const View& out, const Access& access, Body&& body) {
    share(n, min_items, Pool::work_of(min_items), out, access, std::forward<Body>(body));
  }

  // Calls function(row index, row of x, row of the result) for each row, on several threads if there is enough to do.
  // The result has `columns` columns; -1 is as many as x. `other` is an array whose row of this index is read too.
  template <class Function>
  Array each_row(const Array& x, Function&& function, const View* other = nullptr, int64_t columns = -1);

  // The rows of x as the kernels' products read them.
  std::shared_ptr<float> prepare(const Array& x, const LinearKernels& kernels);

  std::shared_ptr<float> allocate(size_t floats);

  const LinearKernels& linear_kernels(Format format) const {
    return exact_ ? kernels_.exact_of(format) : kernels_.linear[static_cast<int>(format)];
  }

  const Kernels& kernels_;
  const bool exact_;
  Pool pool_;
  std::atomic<bool> hurry_ = false;
  Arena arena_;
  std::mutex arena_mutex_;
  std::mutex prepared_mutex_;
  std::shared_ptr<BufferCache> buffers_ = std::make_shared<BufferCache>();
};

}  // namespace rushlight
