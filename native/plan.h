// A step of a model as it was once computed, to be computed again on other tokens without asking the model.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "array.h"
#include "device.h"
#include "failure.h"
#include "pool.h"

namespace rushlight {

// Memory for the activations of one plan: freed buffers are taken again, and none is given back, so that the addresses
// of a step are good for every later one. Which activations may share a buffer is thus settled by when the model let go
// of them (as in the memory pool of a CUDA graph).
class Workspace : public std::enable_shared_from_this<Workspace> {
 public:
  std::shared_ptr<float> allocate(size_t floats);
  bool owns(const float* data) const;
  // Takes a buffer out: whoever holds it now is the last to.
  void give_away(const float* buffer);
  size_t n_taken() const;

 private:
  struct Buffer {
    std::shared_ptr<float> memory;
    size_t floats;
    bool taken;
  };
  void release(const float* buffer);

  mutable std::mutex mutex_;
  std::vector<Buffer> buffers_;
};

// What a step reads that is not of the model.
struct StepInputs {
  std::span<const int32_t> ids, positions, logit_rows;
  const Rows& rows;
  const KVCache& cache;
};

// The stages of a step for some number of rows, in the order in which the device worked at them.
//
// A device adds to the plan that this thread records. What cannot be repeated spoils it: an array that comes from
// elsewhere, is read in the middle, or is kept beyond the step. Everything that varies from step to step lies in the
// plan: the model gets the plan's `ids` and so on, of which it can learn no value, only hand them on.
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
  void add(int64_t n, int64_t least, double work, const View& out,
           std::function<void(const View& out, int64_t begin, int64_t end)> body);
  void spoil() { spoilt_ = true; }
  // Spoils the plan unless the array is one that it computes.
  void reads(const View& x);
  // Spoils the plan unless these are input numbers of its own, which must then always be below the limit.
  void reads(std::span<const int32_t> numbers, int64_t limit);
  void reads(const Rows& rows, const KVCache& cache);

  // Ends the recording of a step whose result is `out`, and returns that in memory of its own. Nothing if the plan cannot
  // be run. Throws std::invalid_argument where no recording is over.
  std::optional<Array> finish(const Array& out);

  // The result for other inputs, of as many rows. Nothing if the plan is running already, or does not fit them, or they
  // are wrong: the model then has to be asked. Throws std::invalid_argument unless `finish` has returned something.
  std::optional<Array> run(const StepInputs& inputs);

 private:
  struct Recorded {
    int64_t n, least;
    double work;
    View out;
    std::function<void(const View& out, int64_t begin, int64_t end)> body;
    OutOfMemory* memory;
  };
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
  std::vector<Stage> stages_;
  std::vector<Limit> limits_;
  OutOfMemory memory_;
  bool spoilt_ = false;
  std::atomic<State> state_ = State::kNew;
  std::mutex running_;
};

}  // namespace rushlight
