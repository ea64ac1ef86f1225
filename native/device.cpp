#include "device.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>

#include "attention_items.h"
#include "failure.h"
#include "plan.h"
#include "require.h"
#include "trigonometry.h"

namespace rushlight {

static std::ostream& operator<<(std::ostream& out, const View& x) {
  return out << "(" << x.rows << ", " << x.columns << ")";
}

namespace {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

constexpr int64_t kLinearRows = 96;      // rows that share a pass over a panel: a multiple of 1, 2, 3, 4, 6, 8 and 12
constexpr int64_t kElementsPerPart = 8192;  // fewer elements than this do not justify a second thread

// Bytes from one row to the next. Rows a multiple of 2 KiB apart would share a few places of the first-level cache when a
// product reads them together.
constexpr size_t row_stride(size_t bytes) { return bytes % 2048 == 0 ? bytes + 64 : bytes; }

// Rows, columns, inputs or outputs: kernels count in int, and round up to whole panels.
constexpr int64_t kMaxItems = std::numeric_limits<int32_t>::max() - 64;

// Reports the inputs of an operation to the plan that this thread records, if any.
template <class... Read>
void reads(const Read&... what) {
  if (Plan* plan = Plan::recording()) plan->reads(what...);
}

// A matrix without memory, of a size that can be allocated.
Weight empty_weight(Format format, int n_in, int n_out) {
  require(n_in > 0 && n_out > 0 && n_in <= kMaxItems && n_out <= kMaxItems,
          "a weight of ", n_in, " inputs and ", n_out, " outputs: expected 1 to ", kMaxItems);
  Weight weight = {nullptr, format, n_in, n_out};
  checked_product({weight.tile_bytes(), static_cast<size_t>(weight.n_tiles()), static_cast<size_t>(weight.n_panels())});
  return weight;
}

}  // namespace

KVCache::KVCache(Format format, std::span<const int> windows, int n_kv_head, int head_dim,
                 std::span<const int> n_blocks)
    : format(format),
      n_layer(static_cast<int>(windows.size())),
      n_kv_head(n_kv_head),
      head_dim(head_dim),
      value_stride(static_cast<size_t>(round_up(head_dim, 16))) {
  require(n_layer > 0 && n_kv_head > 0 && head_dim > 0 && head_dim <= kMaxItems,
          "a KV cache needs at least one layer, key/value head and channel");
  require(static_cast<int>(format) < kKVFormats, "keys and values must be f32 or f16");
  const size_t step = checked_product({static_cast<size_t>(n_kv_head), key_head() + value_head()});
  std::vector<size_t> n_layers;  // of each group
  for (const int window : windows) {
    require(window > 0, "a layer's window is ", window, ": expected at least 1");
    const auto same = std::ranges::find(groups, window, &KVGroup::window);
    const int group = static_cast<int>(same - groups.begin());
    if (same == groups.end()) {
      const size_t at = n_blocks.size() == 1 ? 0 : groups.size();
      require(at < n_blocks.size() && n_blocks[at] >= 0, "expected a number of blocks for each group of layers");
      groups.push_back({window, n_blocks[at]});
      n_layers.push_back(0);
    }
    layers.push_back({group, n_layers[static_cast<size_t>(group)]++, 0});
  }
  require(n_blocks.size() == 1 || n_blocks.size() == groups.size(),
          "found ", n_blocks.size(), " numbers of blocks for ", groups.size(), " groups of layers");
  std::vector<size_t> starts;
  size_t items = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    starts.push_back(items);
    items += checked_product({static_cast<size_t>(groups[g].n_blocks), n_layers[g], step, item_bytes()}) / item_bytes();
  }
  for (Layer& layer : layers) {
    const auto g = static_cast<size_t>(layer.group);
    layer.block_step = n_layers[g] * step;
    layer.first = starts[g] + layer.first * step;
  }
  bytes = checked_product({items, item_bytes()});
  memory = map_pages(bytes);
}

bool KVCache::is_like(const KVCache& other) const {
  const auto same_group = [](const Layer& a, const Layer& b) { return a.group == b.group; };
  return format == other.format && n_kv_head == other.n_kv_head && head_dim == other.head_dim &&
         std::ranges::equal(groups, other.groups, {}, &KVGroup::window, &KVGroup::window) &&
         std::ranges::equal(layers, other.layers, same_group);
}

Rows::Rows(std::span<const int32_t> row_starts, std::span<const int32_t> positions, std::vector<BlockTable> tables,
           const KVCache& cache, std::shared_ptr<const void> owner)
    : row_starts_(row_starts.begin(), row_starts.end()),
      tables_(std::move(tables)),
      groups_(cache.groups),
      owner_(std::move(owner)) {
  const int64_t n = static_cast<int64_t>(row_starts.size()) - 1;
  const auto n_tables = static_cast<int64_t>(tables_.size());
  require(n >= 0 && row_starts.front() == 0 && row_starts.back() == static_cast<int64_t>(positions.size()) &&
              (n_tables == n || n_tables == n * static_cast<int64_t>(groups_.size())),
          "row_starts, positions and block_tables are inconsistent");
  for (int64_t s = 0; s < n; ++s) require(row_starts[s] < row_starts[s + 1], "sequence ", s, " has no rows");
  for (int64_t s = 0; s < n; ++s) {
    sequences_.resize(static_cast<size_t>(row_starts[s + 1]), static_cast<int32_t>(s));
    positions_.push_back(positions[row_starts[s]]);
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (int64_t s = 0; s < n; ++s) {
      const BlockTable table = tables_[static_cast<size_t>(n_tables == n ? s : static_cast<int64_t>(g) * n + s)];
      const int64_t position = positions_[static_cast<size_t>(s)];
      const int64_t last = position + row_starts[s + 1] - row_starts[s] - 1;
      require(position >= 0 && last / kBlock < static_cast<int64_t>(table.size()) && last <= kMaxItems,
              "position ", position < 0 ? position : last, " is beyond the sequence's blocks");
      const int64_t first = std::max<int64_t>(0, position - (groups_[g].window - 1));  // that a row sees
      uint32_t greatest = 0;  // -1 is the greatest of all: so compared, many blocks are checked at once
      for (int64_t j = first / kBlock; j <= last / kBlock; ++j) {
        greatest = std::max(greatest, static_cast<uint32_t>(table[static_cast<size_t>(j)]));
      }
      require(greatest < static_cast<uint32_t>(groups_[g].n_blocks),
              "block ", static_cast<int32_t>(greatest), " is not in the cache");
    }
  }
}

Device::Device(int n_threads, bool adapts, const Kernels& kernels, bool exact)
    : kernels_(kernels), exact_(exact), pool_(n_threads, adapts) {}

Weight Device::weight(Format format, int n_in, int n_out) {
  Weight weight = empty_weight(format, n_in, n_out);
  const std::lock_guard lock(arena_mutex_);
  weight.memory = arena_.allocate(weight.bytes());
  return weight;
}

Weight Device::weight(Format format, int n_in, int n_out, std::shared_ptr<const Mapping> mapping, int64_t offset) {
  Weight weight = empty_weight(format, n_in, n_out);
  const size_t bytes = weight.bytes();
  require(offset >= 0 && offset % 64 == 0 && bytes <= mapping->bytes() &&
              static_cast<uint64_t>(offset) <= mapping->bytes() - bytes,
          "byte ", offset, " is not the beginning of ", bytes, " aligned bytes in a file of ", mapping->bytes());
  auto* panels = const_cast<uint8_t*>(mapping->data() + offset);  // nothing writes to a mapped weight
  weight.memory = std::shared_ptr<uint8_t>(panels, [held = std::move(mapping)](uint8_t*) {});
  weight.is_mapped = true;
  return weight;
}

bool Device::pack(const Source& source, int64_t first, const Weight& weight) {
  const int64_t n_rows = source.rows_are_inputs ? weight.n_in : weight.n_out;
  require(!weight.is_mapped, "a weight in a mapped file cannot be written to");
  require(source.columns == (source.rows_are_inputs ? weight.n_out : weight.n_in) && first % kTile == 0 &&
              first >= 0 && source.rows <= n_rows && first <= n_rows - source.rows,
          "rows ", first, " and on, of ", source.columns, " columns, are not a part of the weight's ", n_rows, " rows");
  return rushlight::pack(source, first, weight, kernels_);
}

Vector Device::vector(int64_t n) {
  require(n >= 0 && n <= kMaxItems, "a vector of length ", n, ": expected 0 to ", kMaxItems);
  const std::lock_guard lock(arena_mutex_);
  return {arena_.allocate(static_cast<size_t>(round_up(n, kPanel)) * sizeof(float)),
          static_cast<int>(n)};
}

uint32_t Device::read(const Weight& weight) {
  std::atomic<uint32_t> total = 0;
  pool_.share(weight.n_panels(), 1, static_cast<double>(weight.panel_bytes()), [&](int64_t begin, int64_t end) {
    const size_t bytes = weight.panel_bytes() * static_cast<size_t>(end - begin);
    total += kernels_.read(weight.tile(static_cast<int>(begin), 0), bytes);
  });
  return total;
}

int64_t Device::peak(Format format, int64_t parts) {
  std::atomic<int64_t> operations = 0;
  pool_.share(parts, 1, Pool::work_of(1), [&](int64_t begin, int64_t end) {
    operations += kernels_.peak[static_cast<int>(format)](end - begin);
  });
  return operations;
}

void Device::unpack(const Weight& weight, float* values) {
  pool_.share(weight.n_out, 8, Pool::work_of(8), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) weight.gather(static_cast<int>(o), values + o * weight.n_in);
  });
}

std::shared_ptr<float> Device::allocate(size_t floats) {
  Plan* plan = Plan::recording();
  return plan == nullptr ? buffers_->allocate(floats) : plan->allocate(floats);
}

Array Device::array(int64_t rows, int64_t columns) {
  require(rows >= 0 && rows <= kMaxItems && columns >= 0 && columns <= kMaxItems,
          "an array has too many rows or columns");
  const size_t stride = row_stride(static_cast<size_t>(round_up(columns, kPanel)) * sizeof(float)) / sizeof(float);
  const size_t bytes = checked_product({static_cast<size_t>(rows), stride, sizeof(float)});
  std::shared_ptr<float> memory = allocate(bytes / sizeof(float));
  float* data = memory.get();
  return {{data, rows, columns, static_cast<int64_t>(stride)}, shared_from_this(), std::move(memory)};
}

template <class Body>
void Device::share(int64_t n, int64_t min_items, double work, const View& out, const Access& access, Body&& body) {
  OutOfMemory memory;
  pool_.share(n, min_items, work, [&](int64_t begin, int64_t end) { memory.watch([&] { body(out, begin, end); }); });
  memory.raise();
  if (Plan* plan = Plan::recording()) plan->add(n, min_items, work, out, access, std::forward<Body>(body));
}

template <class Function>
Array Device::each_row(const Array& x, Function&& function, const View* other, int64_t columns) {
  Array out = array(x.rows, columns < 0 ? x.columns : columns);
  share(x.rows, kElementsPerPart / std::max<int64_t>(x.columns, 1) + 1, out,
        {Items::kRows, {x.data, other == nullptr ? x.data : other->data}, out.data},
        [in = View(x), function](const View& out, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) function(i, in.row(i), out.row(i));
        });
  return out;
}

Array Device::embedding(std::span<const int32_t> ids, const Weight& table, int64_t first_row) {
  require(first_row >= 0 && first_row <= table.n_out,
          "first_row is ", first_row, ", the table has ", table.n_out, " rows");
  const int64_t n_ids = table.n_out - first_row;
  for (const int32_t id : ids) {
    require(id >= 0 && id < n_ids, "id ", id, " is beyond the table's ", n_ids, " rows from row ", first_row);
  }
  reads(ids, n_ids);
  Array out = array(static_cast<int64_t>(ids.size()), table.n_in);
  const auto gather = [ids, table, first = static_cast<int>(first_row)](const View& out, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) table.gather(first + ids[i], out.row(i));
  };
  share(out.rows, 8, out, {Items::kRows, {}, out.data}, gather);
  return out;
}

Array Device::linear(const Array& x, const Weight& weight, const Vector* bias) {
  require(x.columns == weight.n_in, "x has ", x.columns, " columns, the weight ", weight.n_in, " inputs");
  require(bias == nullptr || bias->n == weight.n_out,
          "the bias does not have ", weight.n_out, " values, one for each output");
  const LinearKernels& kernels = linear_kernels(weight.format);
  Array out = array(x.rows, weight.n_out);
  const uint8_t* input = reinterpret_cast<const uint8_t*>(x.data);
  size_t input_stride = static_cast<size_t>(x.stride) * sizeof(float);
  std::shared_ptr<float> prepared;
  if (kernels.prepare != nullptr) {
    input_stride = row_stride(kernels.prepared_bytes(weight.n_in));
    prepared = prepare(x, kernels);
    input = reinterpret_cast<const uint8_t*>(prepared.get());
  }
  // Parts follow the panels, so that each thread reads contiguous weights; many rows are divided too.
  const int64_t row_parts = std::max<int64_t>((x.rows + kLinearRows - 1) / kLinearRows, 1);
  const double work =
      static_cast<double>(x.rows * x.columns) * kPanel / static_cast<double>(kElementsPerPart * row_parts);
  const Access access = {Items::kPanels, {input}, out.data, weight.memory.get(),
                         weight.panel_bytes() / static_cast<size_t>(row_parts)};
  share(weight.n_panels() * row_parts, 1, work, out, access,
        [&kernels, weight, bias = bias == nullptr ? Vector{} : *bias, input, input_stride, row_parts](
            const View& out, int64_t begin, int64_t end) {
          const LinearJob job = {weight.memory.get(),
                                 weight.panel_bytes(),
                                 weight.n_in,
                                 input,
                                 input_stride,
                                 out.data,
                                 static_cast<size_t>(out.stride),
                                 bias.data()};
          while (begin < end) {
            const int64_t panel = begin / row_parts, part = begin % row_parts;
            const int64_t parts = std::min(row_parts - part, end - begin);
            const bool whole = part == 0 && parts == row_parts;
            const int64_t panels = whole ? (end - begin) / row_parts : 1;
            for (int64_t i = part; i < part + parts; ++i) {
              kernels.run(job, static_cast<int>(panel), static_cast<int>(panel + panels),
                          static_cast<int>(i * kLinearRows),
                          static_cast<int>(std::min((i + 1) * kLinearRows, out.rows)));
            }
            begin += whole ? panels * row_parts : parts;
          }
        });
  return out;
}

std::shared_ptr<float> Device::prepare(const Array& x, const LinearKernels& kernels) {
  const Plan* plan = Plan::recording();
  {
    const std::lock_guard lock(prepared_mutex_);
    const Prepared& kept = x.prepared;
    if (kept.by == kernels.prepare && (plan == nullptr || plan->owns(kept.memory.get()))) return kept.memory;
  }
  const size_t stride = row_stride(kernels.prepared_bytes(static_cast<int>(x.columns)));
  std::shared_ptr<float> prepared = allocate((stride * static_cast<size_t>(x.rows) + 3) / 4);
  auto* bytes = reinterpret_cast<uint8_t*>(prepared.get());
  share(x.rows, kElementsPerPart / std::max<int64_t>(x.columns, 1) + 1, View{prepared.get()},
        {Items::kRows, {x.data}, bytes},
        [prepare = kernels.prepare, in = View(x), bytes, stride](const View&, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            uint8_t* row = bytes + static_cast<size_t>(i) * stride;
            if (i + 1 < end) {  // other cores have read the lines of the next row
              for (size_t at = 0; at < stride; at += 64) __builtin_prefetch(row + stride + at, 1);
            }
            prepare(in.row(i), static_cast<int>(in.columns), row);
          }
        });
  const std::lock_guard lock(prepared_mutex_);
  if (!x.exposed) x.prepared = {kernels.prepare, prepared};
  return prepared;
}

void Device::expose(const Array& x) {
  const std::lock_guard lock(prepared_mutex_);
  x.exposed = true;
  x.prepared = {};
}

Array Device::layer_norm(const Array& x, const Vector& weight, const Vector* bias, float eps) {
  require(x.columns == weight.n && (bias == nullptr || bias->n == weight.n), "x, weight and bias differ in length");
  return each_row(x, [layer_norm = kernels_.layer_norm, weight, bias = bias == nullptr ? Vector{} : *bias, eps](
                         int64_t, const float* in, float* out) {
    layer_norm(in, weight.data(), bias.data(), eps, out, weight.n);
  });
}

Array Device::rms_norm(const Array& x, const Vector& weight, float eps, float offset) {
  require(weight.n > 0 && x.columns % weight.n == 0,
          "x has ", x.columns, " columns, not a multiple of the weight's length ", weight.n);
  return each_row(x, [rms_norm = kernels_.rms_norm, weight, eps, offset, n = x.columns](
                         int64_t, const float* in, float* out) {
    for (int64_t i = 0; i < n; i += weight.n) rms_norm(in + i, weight.data(), eps, offset, out + i, weight.n);
  });
}

Array Device::angles(std::span<const int32_t> positions, const Vector& frequencies, float scale) {
  for (const int32_t position : positions) require(position >= 0, "position ", position, " is negative");
  reads(positions, int64_t{1} << 31);
  Array out = array(static_cast<int64_t>(positions.size()), 2 * int64_t{frequencies.n});
  constexpr int64_t kPerPart = kElementsPerPart / 16;  // an angle takes as long as 16 sums
  const int64_t min_items = kPerPart / std::max<int64_t>(frequencies.n, 1) + 1;
  const Access access = {Items::kRows, {}, out.data};
  share(out.rows, min_items, out, access, [positions, frequencies, scale](const View& out, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* cosines = out.row(i);
      float* sines = cosines + frequencies.n;
      for (int k = 0; k < frequencies.n; ++k) {
        const auto [cos, sin] = cos_sin(static_cast<float>(positions[i]) * frequencies.data()[k]);
        cosines[k] = cos * scale;
        sines[k] = sin * scale;
      }
    }
  });
  return out;
}

Array Device::rotary(const Array& x, const Array& angles, int n_head, bool interleaved) {
  require(n_head > 0 && x.columns % n_head == 0,
          "x has ", x.columns, " columns, which do not split into ", n_head, " equal heads");
  require(angles.rows == x.rows, "x and angles differ in rows");
  const int64_t head_dim = x.columns / n_head;
  require(angles.columns % 2 == 0 && angles.columns <= head_dim,
          "angles have ", angles.columns, " columns: expected an even number up to the head's ", head_dim, " channels");
  const auto rotate = [rotary = kernels_.rotary[interleaved ? 1 : 0], angles = View(angles), n_head,
                      head_dim = static_cast<int>(head_dim)](int64_t i, const float* in, float* out) {
    rotary(in, angles.row(i), n_head, head_dim, static_cast<int>(angles.columns), out);
  };
  return each_row(x, rotate, &angles);
}

Array Device::activation(const Array& x, ActivationKind kind) {
  const auto function = kernels_.activation[static_cast<int>(kind)];
  const auto n = static_cast<int>(x.columns);
  return each_row(x, [function, n](int64_t, const float* in, float* out) { function(in, out, n); });
}

Array Device::exp(const Array& x) {
  const auto n = static_cast<int>(x.columns);
  return each_row(x, [exp = kernels_.exp, n](int64_t, const float* in, float* out) { exp(in, out, n); });
}

Array Device::add(const Array& a, const Array& b) {
  require(a.rows == b.rows && a.columns == b.columns, "cannot add arrays of shapes ", a, " and ", b);
  const auto add_row = [add = kernels_.add, b = View(b)](int64_t i, const float* in, float* out) {
    add(in, b.row(i), out, static_cast<int>(b.columns));
  };
  return each_row(a, add_row, &b);
}

Array Device::multiply(const Array& a, const Array& b) {
  require(a.rows == b.rows && a.columns == b.columns, "cannot multiply arrays of shapes ", a, " and ", b);
  const auto multiply_row = [multiply = kernels_.multiply, b = View(b)](int64_t i, const float* in, float* out) {
    multiply(in, b.row(i), out, static_cast<int>(b.columns));
  };
  return each_row(a, multiply_row, &b);
}

Array Device::scale(const Array& x, float factor) {
  return each_row(x, [scale = kernels_.scale, factor, n = static_cast<int>(x.columns)](
                         int64_t, const float* in, float* out) { scale(in, factor, out, n); });
}

Array Device::take(const Array& x, std::span<const int32_t> rows) {
  for (const int32_t row : rows) require(row >= 0 && row < x.rows,
                                         "row ", row, " is not in an array of ", x.rows, " rows");
  reads(rows, x.rows);
  Array out = array(static_cast<int64_t>(rows.size()), x.columns);
  share(out.rows, kElementsPerPart / std::max<int64_t>(x.columns, 1) + 1, out, {Items::kOther, {x.data}, out.data},
        [in = View(x), rows](const View& out, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            std::memcpy(out.row(i), in.row(rows[i]), static_cast<size_t>(in.columns) * sizeof(float));
          }
        });
  return out;
}

std::vector<int32_t> Device::sample(const Array& logits, std::span<const SamplingRow> rows) {
  require(logits.rows == static_cast<int64_t>(rows.size()),
          "expected a SamplingRow for each of ", logits.rows, " rows of logits, found ", rows.size());
  require(logits.columns > 0, "the logits have no columns");
  for (const SamplingRow& row : rows) {
    require(row.temperature >= 0 && std::isfinite(row.temperature) && row.top_k >= 0 && row.top_p > 0 &&
                row.top_p <= 1 && row.min_p >= 0 && row.min_p <= 1 && row.uniform >= 0 && row.uniform < 1,
            "temperature, top_k, top_p, min_p or uniform is out of range");
    require(row.ids.size() == row.factors.size() && row.ids.size() == row.offsets.size(),
            "ids, factors and offsets differ in length");
    require(std::ranges::all_of(row.ids, [&](int32_t id) { return id >= 0 && id < logits.columns; }),
            "an adjusted id is beyond the logits");
    require(row.allowed.empty() || static_cast<int64_t>(row.allowed.size()) == logits.columns,
            "allowed has ", row.allowed.size(), " entries for ", logits.columns, " tokens");
  }
  std::vector<int32_t> sampled(rows.size());
  const auto sample_rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::span values(logits.row(i), static_cast<size_t>(logits.columns));
      sampled[static_cast<size_t>(i)] = rushlight::sample(values, rows[static_cast<size_t>(i)], kernels_);
    }
  };
  OutOfMemory memory;
  const int64_t min_items = kElementsPerPart / logits.columns + 1;
  pool_.share(logits.rows, min_items, Pool::work_of(min_items),
              [&](int64_t begin, int64_t end) { memory.watch([&] { sample_rows(begin, end); }); });
  memory.raise();
  return sampled;
}

Array Device::unfold(const Array& x, std::span<const int32_t> rows, int64_t size) {
  reads(rows, x.rows);
  require(size > 0 && size <= kMaxItems, "unfold needs at least one row to put side by side");
  Array out = array(static_cast<int64_t>(rows.size()) / size, size * x.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows[i] >= -1 && rows[i] < x.rows, "row ", rows[i], " is not in an array of ", x.rows, " rows");
    float* to = out.row(static_cast<int64_t>(i) / size) + static_cast<int64_t>(i) % size * x.columns;
    if (rows[i] < 0) {
      std::fill_n(to, x.columns, 0.0f);
    } else {
      std::memcpy(to, x.row(rows[i]), static_cast<size_t>(x.columns) * sizeof(float));
    }
  }
  return out;
}

std::vector<Array> Device::split(const Array& x, std::span<const int64_t> sizes, int64_t groups) {
  require(groups > 0 && x.columns % groups == 0,
          "x has ", x.columns, " columns, which do not split into ", groups, " equal groups");
  const int64_t group = x.columns / groups;
  int64_t rest = group;
  for (const int64_t size : sizes) {
    require(size > 0 && size <= rest, "the sizes do not add up to the ", group, " columns to split");
    rest -= size;
  }
  require(rest == 0, "the sizes do not add up to the ", group, " columns to split");
  if (groups == 1) expose(x);
  std::vector<Array> parts;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    if (groups == 1) {
      Array& part = parts.emplace_back(x);
      part.columns = size;
      part.data = x.data + at;
    } else {
      const auto gather = [groups, group, size, at](int64_t, const float* in, float* out) {
        for (int64_t g = 0; g < groups; ++g) {
          std::memcpy(out + g * size, in + g * group + at, static_cast<size_t>(size) * sizeof(float));
        }
      };
      parts.push_back(each_row(x, gather, nullptr, groups * size));
    }
    at += size;
  }
  return parts;
}

Array Device::join(std::span<const Array> parts) {
  require(!parts.empty(), "expected at least one array to join");
  int64_t columns = 0;
  for (const Array& part : parts) {
    require(part.rows == parts.front().rows, "the arrays to join differ in rows");
    columns += part.columns;
  }
  Array out = array(parts.front().rows, columns);
  const int64_t min_items = kElementsPerPart / std::max<int64_t>(columns, 1) + 1;
  int64_t at = 0;
  for (const Array& part : parts) {
    share(out.rows, min_items, out, {Items::kRows, {part.data}, out.data},
          [in = View(part), at](const View& out, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              std::memcpy(out.row(i) + at, in.row(i), static_cast<size_t>(in.columns) * sizeof(float));
            }
          });
    at += part.columns;
  }
  return out;
}

Array Device::attention(const Array& q, const Array& k, const Array& v, const Rows& rows, const KVCache& cache,
                        int layer, int n_head, float scale, const ScoreOptions& options) {
  const int head_dim = cache.head_dim, n_kv_head = cache.n_kv_head;
  const int64_t n = rows.n_rows();
  require(n_head > 0 && n_head % n_kv_head == 0,
          "the cache is for a different number of heads: ", n_head, " query heads are not a multiple of ", n_kv_head,
          " key/value heads");
  const auto check = [&](const Array& x, const char* name, int heads) {
    require(x.rows == n && x.columns == int64_t{heads} * head_dim,
            name, " do not fit the batch and the cache: expected ", n, " rows of ", heads, " heads of ", head_dim,
            ", found ", x);
  };
  check(q, "queries", n_head), check(k, "keys", n_kv_head), check(v, "values", n_kv_head);
  require(layer >= 0 && layer < cache.n_layer && rows.groups() == cache.groups,
          "layer ", layer, " or the batch's rows do not belong to this cache");
  const int kv_group = cache.layers[static_cast<size_t>(layer)].group;
  const int kept = cache.groups[static_cast<size_t>(kv_group)].window;
  require(cache.memory != nullptr, "the plan's cache is only available while the plan is recorded");
  require(n * n_head <= kMaxItems, "too many rows for ", n_head, " heads");
  require(options.window > 0, "window is ", options.window, ": expected at least 1");
  require(options.window <= kept, "the cache keeps only the last ", kept, " positions of layer ", layer,
          ": pass a window of at most that");
  require(options.softcap >= 0 && std::isfinite(options.softcap), "softcap is not a positive number");
  require(options.slopes == nullptr || options.slopes->n == n_head,
          "expected ", n_head, " slopes, one for each head");
  reads(rows, cache);
  const auto store_kv = kernels_.store_kv[static_cast<int>(cache.format)];
  const AttentionKernels& attend = kernels_.attention[static_cast<int>(cache.format)];

  // First all keys and values into the cache, then the products: a row may attend to a position of another part.
  share(n, kElementsPerPart / (int64_t{head_dim} * n_kv_head) + 1, View{}, {Items::kRows, {k.data, v.data}, &cache},
        [&rows, &cache, k = View(k), v = View(v), layer, kv_group, head_dim, n_kv_head, store_kv](
            const View&, int64_t begin, int64_t end) {
          for (int64_t i = 0; i < (end - begin) * n_kv_head; ++i) {  // head by head: neighbouring rows share lines
            const int head = static_cast<int>(i / (end - begin)), row = static_cast<int>(begin + i % (end - begin));
            const int s = rows.sequence(row);
            const int position = rows.position(s) + row - rows.begin(s), at = position % kBlock;
            const auto block = static_cast<size_t>(rows.blocks(kv_group, s)[position / kBlock]);
            store_kv(k.row(row) + head * head_dim, v.row(row) + head * head_dim, head_dim,
                     cache.keys(layer, head, block) + at * cache.item_bytes(),
                     cache.values(layer, head, block) + at * cache.value_stride * cache.item_bytes());
          }
        });

  // Query heads that share a key/value head are computed together, so that a key is loaded once for them, and with
  // them the next rows of the sequence.
  const int group = n_head / n_kv_head;
  Array out = array(n, int64_t{n_head} * head_dim);
  std::shared_ptr<AttentionItems> items;
  const double work = 2.0 * head_dim / static_cast<double>(kElementsPerPart);
  const auto divided = [&] {
    return std::make_shared<AttentionItems>(rows, options.window, n_kv_head, group, cache.value_stride, work,
                                            pool_.n_threads());
  };
  Plan* plan = Plan::recording();
  if (plan != nullptr) {
    items = plan->attention_items(rows, options.window, n_kv_head, group);
    if (items == nullptr) plan->keep(items = divided());
  } else {
    items = divided();
  }
  const auto run = [&rows, &cache, &attend, items, q = View(q), layer, kv_group, head_dim, scale, group,
                    window = options.window, softcap = options.softcap,
                    slopes = options.slopes == nullptr ? Vector{} : *options.slopes](
                       const View& out, int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    scratch.resize(attention_scratch(cache.value_stride));
    for (int64_t i = begin; i < end; ++i) {
      const AttentionItem item = (*items)[i];
      const int s = item.sequence;
      const AttentionJob job = {q.row(rows.begin(s)) + item.head * group * head_dim,
                                static_cast<size_t>(q.stride),
                                out.row(rows.begin(s)) + item.head * group * head_dim,
                                static_cast<size_t>(out.stride),
                                cache.keys(layer, item.head, 0),
                                cache.values(layer, item.head, 0),
                                cache.layers[static_cast<size_t>(layer)].block_step,
                                cache.value_stride,
                                rows.blocks(kv_group, s),
                                rows.position(s),
                                head_dim,
                                group,
                                scale,
                                window,
                                softcap,
                                slopes.n == 0 ? nullptr : slopes.data() + item.head * group};
      if (item.chain < 0) {
        attend.run(job, item.query_begin, item.query_end, scratch.data());
        continue;
      }
      float* state = item.states + static_cast<size_t>(item.chain - item.first_chain) * item.states_step;
      attend.run_chain(job, item.query_begin, item.query_end, item.chain, state, scratch.data());
      if (items->completes(item)) {
        attend.merge(job, item.query_begin, item.query_end, item.first_chain, item.n_chains, item.states,
                     item.states_step, scratch.data());
      }
    }
  };
  share(items->n(), 1, items->work(), out, {Items::kOther, {q.data, &cache}, out.data, nullptr, 0, items.get()}, run);
  return out;
}

}  // namespace rushlight
