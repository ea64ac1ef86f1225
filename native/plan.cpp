#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>

namespace rushlight {

namespace {

thread_local Plan* recording_here = nullptr;

constexpr int64_t kRest = 6;  // from the query to the value, with norms and rotary between

bool within(std::span<const int32_t> numbers, int64_t limit) {
  return std::ranges::all_of(numbers, [&](int32_t i) { return i >= 0 && i < limit; });
}

}  // namespace

std::shared_ptr<float> Workspace::allocate(size_t floats) {
  const std::lock_guard lock(mutex_);
  ++n_allocations_;
  auto free = std::ranges::find_if(
      buffers_, [&](const Buffer& b) { return !b.taken && b.floats == floats && b.usable <= n_allocations_; });
  if (free == buffers_.end()) {
    auto* memory = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64 + 64));
    if (memory == nullptr) throw std::bad_alloc();
    buffers_.push_back({{memory, std::free}, floats, false, 0});
    free = std::prev(buffers_.end());
  }
  free->taken = true;
  return {free->memory.get(),
          [self = shared_from_this(), memory = free->memory](const float* buffer) { self->release(buffer); }};
}

void Workspace::release(const float* buffer) {
  const std::lock_guard lock(mutex_);
  for (Buffer& b : buffers_) {
    if (b.memory.get() == buffer) b.taken = false, b.usable = n_allocations_ + kRest;
  }
}

const float* Workspace::buffer_of(const void* address) const {
  const std::lock_guard lock(mutex_);
  const auto* data = static_cast<const float*>(address);
  const auto found = std::ranges::find_if(
      buffers_, [&](const Buffer& b) { return data >= b.memory.get() && data < b.memory.get() + b.floats; });
  return found == buffers_.end() ? nullptr : found->memory.get();
}

void Workspace::detach(const float* buffer) {
  const std::lock_guard lock(mutex_);
  std::erase_if(buffers_, [&](const Buffer& b) { return b.memory.get() == buffer; });
}

size_t Workspace::n_taken() const {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(std::ranges::count_if(buffers_, &Buffer::taken));
}

Plan::Plan(std::shared_ptr<Device> device, const StepInputs& inputs)
    : device_(std::move(device)),
      ids_(inputs.ids.begin(), inputs.ids.end()),
      positions_(inputs.positions.begin(), inputs.positions.end()),
      logit_rows_(inputs.logit_rows.begin(), inputs.logit_rows.end()),
      rows_(inputs.rows),
      cache_(inputs.cache) {}

Plan* Plan::recording() { return recording_here; }

Plan::Recording::Recording(Plan& plan) : plan_(plan), outer_(recording_here) {
  if (plan.state_ != State::kNew) throw std::invalid_argument("a plan can be recorded only once");
  if (outer_ != nullptr) outer_->invalidate("another step is recorded inside it");
  plan.state_ = State::kRecording;
  recording_here = &plan;
}

Plan::Recording::~Recording() {
  recording_here = outer_;
  plan_.state_ = State::kRecorded;
}

void Plan::add(int64_t n, int64_t min_items, double work, const View& out, const Access& access,
               std::function<void(const View& out, int64_t begin, int64_t end)> body) {
  const auto whole = [&](const void* address) {
    return address == &cache_ ? address : static_cast<const void*>(workspace_->buffer_of(address));
  };
  std::vector<const void*> reads;
  for (const void* address : access.reads) {
    reads.push_back(whole(address));
    if (reads.back() == nullptr) invalidate("it computes with an array that was made outside the step");
  }
  if (n == 0) return;
  recorded_.push_back({n, min_items, work, out, std::move(body), access.items, std::move(reads),
                       whole(access.writes), access.weights, access.item_bytes, access.divided});
}

std::shared_ptr<AttentionItems> Plan::attention_items(const Rows& rows, int window, int n_kv_head,
                                                     int group) const {
  const auto found = std::ranges::find_if(attention_items_, [&](const std::shared_ptr<AttentionItems>& items) {
    return items->is_like(rows, window, n_kv_head, group);
  });
  return found == attention_items_.end() ? nullptr : *found;
}

// Whether an operation must not run before or beside the parts.
bool Plan::Joined::conflicts(const Recorded& later) const {
  return std::ranges::any_of(parts, [&](const Recorded* part) {
    return part->writes == later.writes || std::ranges::find(later.reads, part->writes) != later.reads.end() ||
           std::ranges::find(part->reads, later.writes) != part->reads.end();
  });
}

// Whether an operation may join the parts, if all that it depends on has run before or, row by row, is among them. The
// arrays of operations by rows have n rows: if they share a buffer, row i of one has the memory of row i of the other.
bool Plan::Joined::admits(const Recorded& later) const {
  const Recorded& first = *parts.front();
  if (later.items != first.items) return false;
  if (later.items == Items::kRows) return later.n == first.n;
  return later.items == Items::kPanels && !conflicts(later);
}

Stage Plan::Joined::stage() {
  int64_t n = 0;
  double work = 0;
  for (const Recorded* part : parts) n += part->n, work += part->work * static_cast<double>(part->n);
  int64_t min_items = parts.front()->min_items;
  if (parts.front()->items == Items::kRows && parts.size() > 1) {
    n = parts.front()->n;
    min_items = static_cast<int64_t>(std::ceil(static_cast<double>(n) / work));
  }
  const auto call = [](void* context, int64_t begin, int64_t end) {
    const auto& joined = *static_cast<const Joined*>(context);
    joined.memory->watch([&] { joined.run(begin, end); });
  };
  const auto weights = [](const void* context, int64_t item) {
    return static_cast<const Joined*>(context)->weights(item);
  };
  const bool streams = parts.front()->items == Items::kPanels;
  return {call, this, n, min_items, work / static_cast<double>(n), streams ? +weights : nullptr};
}

std::span<const uint8_t> Plan::Joined::weights(int64_t item) const {
  auto part = parts.begin();
  for (; item >= (*part)->n; ++part) item -= (*part)->n;
  return {(*part)->weights + static_cast<size_t>(item) * (*part)->item_bytes, (*part)->item_bytes};
}

void Plan::Joined::run(int64_t begin, int64_t end) const {
  if (parts.size() == 1) {  // attention, which is never joined, may have more items than when it was recorded
    parts.front()->body(parts.front()->out, begin, end);
    return;
  }
  if (parts.front()->items == Items::kRows) {
    for (int64_t row = begin; row < end; ++row) {
      for (const Recorded* part : parts) part->body(part->out, row, row + 1);
    }
    return;
  }
  for (const Recorded* part : parts) {
    if (begin < part->n && end > 0) part->body(part->out, std::max<int64_t>(begin, 0), std::min(end, part->n));
    begin -= part->n, end -= part->n;
  }
}

void Plan::join() {
  for (Recorded& operation : recorded_) {
    const auto last = std::find_if(joined_.rbegin(), joined_.rend(),
                                   [&](const Joined& joined) { return joined.conflicts(operation); });
    const auto stage = std::find_if(last == joined_.rend() ? joined_.begin() : std::prev(last.base()), joined_.end(),
                                    [&](const Joined& joined) { return joined.admits(operation); });
    if (stage != joined_.end()) {
      stage->parts.push_back(&operation);
    } else {
      joined_.push_back({{&operation}, &memory_});
    }
  }
}

void Plan::reads(std::span<const int32_t> numbers, int64_t limit) {
  for (const auto* own : {&ids_, &positions_, &logit_rows_}) {
    if (own->data() == numbers.data() && own->size() == numbers.size()) {
      limits_.push_back({own, limit});
      return;
    }
  }
  invalidate("an operation takes integers other than the batch's own ids, positions and logit_rows");
}

void Plan::reads(const Rows& rows, const KVCache& cache) {
  if (&rows != &rows_ || &cache != &cache_) invalidate("attention is called with a batch other than the step's own");
}

Array Plan::finish(const Array& out) {
  if (state_ != State::kRecorded) throw std::invalid_argument("a plan can be finished only after it was recorded");
  state_ = State::kUnfit;
  // Each run writes its result into new memory, so the last stage must write it, and no other array may be left.
  if (recorded_.empty() || recorded_.back().out.data != out.data || recorded_.back().out.columns != out.columns) {
    invalidate("the result is not that of the last operation");
  }
  if (workspace_->n_taken() != 1) invalidate("it keeps an array after the step");
  if (invalid_ != nullptr) throw NotRecordable(invalid_);
  Array result = device_->array(out.rows, out.columns);
  for (int64_t i = 0; i < out.rows; ++i) std::copy_n(out.row(i), out.columns, result.row(i));
  const auto writes_out = [&](const Recorded& stage) { return stage.out.data == out.data; };
  if (std::ranges::count_if(recorded_, writes_out) == 1) workspace_->detach(out.data);
  cache_.memory.reset();
  rows_.disown();
  join();
  for (Joined& joined : joined_) stages_.push_back(joined.stage());
  state_ = State::kFinished;
  return result;
}

std::optional<Array> Plan::run(const StepInputs& inputs) {
  if (state_ != State::kFinished) throw std::invalid_argument("a plan can be run only after it was finished");
  if (recording_here != nullptr) recording_here->invalidate("another recorded step runs inside it");
  const std::unique_lock lock(running_, std::try_to_lock);
  if (!lock || inputs.ids.size() != ids_.size() || inputs.positions.size() != positions_.size() ||
      inputs.logit_rows.size() != logit_rows_.size() || inputs.rows.n_rows() != rows_.n_rows() ||
      inputs.rows.groups() != inputs.cache.groups || !inputs.cache.is_like(cache_)) {
    return std::nullopt;
  }
  std::ranges::copy(inputs.ids, ids_.begin());
  std::ranges::copy(inputs.positions, positions_.begin());
  std::ranges::copy(inputs.logit_rows, logit_rows_.begin());
  if (!std::ranges::all_of(limits_, [](const Limit& l) { return within(*l.numbers, l.limit); })) return std::nullopt;
  rows_ = inputs.rows;
  rows_.disown();  // the caller keeps the tables until this returns
  cache_ = inputs.cache;
  for (const std::shared_ptr<AttentionItems>& items : attention_items_) items->divide();
  for (size_t i = 0; i < stages_.size(); ++i) {
    const AttentionItems* divided = joined_[i].parts.front()->divided;
    if (divided != nullptr) stages_[i].n = divided->n(), stages_[i].work = divided->work();
  }
  View& last = recorded_.back().out;
  Array result = device_->array(last.rows, last.columns);
  last = result;
  device_->run(stages_);
  cache_.memory.reset();  // or the plan would keep it alive
  memory_.raise();
  return result;
}

}  // namespace rushlight
