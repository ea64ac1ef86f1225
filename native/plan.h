// A recorded step: the device operations of one forward, to be run again on other tokens without calling the model.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "array.h"
#include "attention_items.h"
#include "device.h"
#include "failure.h"
#include "pool.h"

namespace rushlight {

// Memory for the activations of one plan. Freed buffers are reused and none is given back, so that the addresses of a
// step hold for every later one. Which activations share a buffer follows from when the model released them, as in the
// memory pool of a CUDA graph. A freed buffer rests for a few allocations, so that operations that do not depend on one
// another do not come to depend by their memory.
class Workspace : public std::enable_shared_from_this<Workspace> {
 public:
  std::shared_ptr<float> allocate(size_t floats);
  // The buffer that the address lies in, or null.
  const float* buffer_of(const void* address) const;
  // Removes a buffer from the workspace: its last owner frees it.
  void detach(const float* buffer);
  size_t n_taken() const;

 private:
  struct Buffer {
    std::shared_ptr<float> memory;
    size_t floats;
    bool taken;
    int64_t usable;  // the number of the allocation that may take it again
  };
  void release(const float* buffer);

  mutable std::mutex mutex_;
  std::vector<Buffer> buffers_;
  int64_t n_allocations_ = 0;
};

// The inputs of a step besides the model.
struct StepInputs {
  std::span<const int32_t> ids, positions, logit_rows;
  const Rows& rows;
  const KVCache& cache;
};

// A step was asked to depend on a value that is not known while it is recorded, or to do something that a repetition
// would not do again. Python's NotRecordableError (backends/protocol.py).
class NotRecordable : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The stages of a step for one number of rows. Each costs a barrier of the threads, which takes as long as a small
// operation. So operations that the device ran one after the other are joined where the results stay the same bits:
// those by rows follow each other row by row, and independent products are one stage of all their panels. An operation
// joins the earliest stage that what it reads and writes allows: in act(gate(x)) * up(x), `up` joins `gate`.
//
// A device adds each of its operations to the plan that this thread records. What cannot be repeated invalidates the
// plan: an array that was made outside the step, is read during it, or is kept after it. Everything that varies
// from step to step lies in the plan: the model gets the plan's `ids`, `positions` and `logit_rows`, which it can pass
// on to operations but not read.
class Plan {
 public:
  // With the inputs of the step that will be recorded.
  Plan(std::shared_ptr<Device> device, const StepInputs& inputs);

  // The plan that this thread is recording, or null.
  static Plan* recording();

  // While it lives, this thread records. A plan is recorded once: throws std::invalid_argument the second time.
  class Recording {
   public:
    explicit Recording(Plan& plan);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    Plan& plan_;
    Plan* outer_;
  };

  std::span<const int32_t> ids() const { return ids_; }
  std::span<const int32_t> positions() const { return positions_; }
  std::span<const int32_t> logit_rows() const { return logit_rows_; }
  const Rows& rows() const { return rows_; }
  const KVCache& cache() const { return cache_; }

  // For the device.
  std::shared_ptr<float> allocate(size_t floats) { return workspace_->allocate(floats); }
  bool owns(const float* data) const { return workspace_->buffer_of(data) != nullptr; }
  // The items of an attention that was recorded before, or null. Layers that divide it alike share them.
  std::shared_ptr<AttentionItems> attention_items(const Rows& rows, int window, int n_kv_head, int group) const;
  void keep(std::shared_ptr<AttentionItems> items) { attention_items_.push_back(std::move(items)); }
  // Invalidates the plan if the operation reads an array that the plan does not compute.
  void add(int64_t n, int64_t min_items, double work, const View& out, const Access& access,
           std::function<void(const View& out, int64_t begin, int64_t end)> body);
  // The first reason is the one that `finish` reports.
  void invalidate(const char* reason) {
    if (invalid_ == nullptr) invalid_ = reason;
  }
  // Invalidates the plan unless these are its own ids, positions or logit rows. Each run checks that they are below the
  // limit.
  void reads(std::span<const int32_t> numbers, int64_t limit);
  void reads(const Rows& rows, const KVCache& cache);

  // Ends the recording of a step whose result is `out`, and returns a copy of that in memory outside the plan. Throws
  // NotRecordable if the step cannot be repeated, std::invalid_argument unless a recording has ended.
  Array finish(const Array& out);

  // The result for other inputs, of as many rows. Nothing if the plan is running on another thread, or the inputs do
  // not fit it or are invalid: the caller then calls the model. Throws std::invalid_argument unless `finish` has
  // returned.
  std::optional<Array> run(const StepInputs& inputs);

  // The number of stages. For tests.
  size_t n_stages() const { return joined_.size(); }

 private:
  struct Recorded {
    int64_t n, min_items;
    double work;
    View out;
    std::function<void(const View& out, int64_t begin, int64_t end)> body;
    Items items;
    std::vector<const void*> reads;  // buffers or the cache
    const void* writes;
    const uint8_t* weights;
    size_t item_bytes;
    AttentionItems* divided;
  };
  // Operations that run as one stage.
  struct Joined {
    std::vector<Recorded*> parts;
    OutOfMemory* memory;

    bool conflicts(const Recorded& later) const;
    bool admits(const Recorded& later) const;
    Stage stage();
    void run(int64_t begin, int64_t end) const;
    std::span<const uint8_t> weights(int64_t item) const;
  };
  void join();
  enum class State : uint8_t { kNew, kRecording, kRecorded, kFinished, kUnfit };
  struct Limit {
    const std::vector<int32_t>* numbers;
    int64_t limit;
  };

  const std::shared_ptr<Device> device_;
  std::shared_ptr<Workspace> workspace_ = std::make_shared<Workspace>();
  std::vector<int32_t> ids_, positions_, logit_rows_;
  Rows rows_;
  KVCache cache_;
  std::vector<Recorded> recorded_;
  std::vector<Joined> joined_;
  std::vector<Stage> stages_;
  std::vector<std::shared_ptr<AttentionItems>> attention_items_;
  std::vector<Limit> limits_;
  OutOfMemory memory_;
  const char* invalid_ = nullptr;  // why the step cannot be repeated
  std::atomic<State> state_ = State::kNew;
  std::mutex running_;
};

}  // namespace rushlight
