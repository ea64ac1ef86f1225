#include "device.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "failure.h"
#include "plan.h"

namespace rushlight {

namespace {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

constexpr int64_t kLinearRows = 96;      // rows that pass a panel together: whole groups of 1, 2, 3, 4, 6, 8 and 12
constexpr int64_t kElementsAPart = 8192;  // fewer elements than this are not worth a second thread

// Of rows, columns, inputs or outputs: kernels count in int, and round up to whole panels.
constexpr int64_t kMostItems = std::numeric_limits<int32_t>::max() - 64;

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

// What an operation reads, for the plan that may be recorded.
template <class... Read>
void reads(const Read&... what) {
  if (Plan* plan = Plan::recording()) plan->reads(what...);
}

}  // namespace

KVCache::KVCache(Format format, int n_layer, int n_head, int head_dim, int n_blocks)
    : format(format),
      n_layer(n_layer),
      n_head(n_head),
      head_dim(head_dim),
      n_blocks(n_blocks),
      value_stride(static_cast<size_t>(round_up(head_dim, 16))) {
  require(n_layer > 0 && n_head > 0 && head_dim > 0 && head_dim <= kMostItems && n_blocks >= 0,
          "a KV cache of no size");
  require(static_cast<int>(format) < kKVFormats, "a KV cache in no format of keys and values");
  memory = map_pages(checked_product({static_cast<size_t>(n_blocks), static_cast<size_t>(n_layer),
                                      static_cast<size_t>(n_head), key_head() + value_head(), item_bytes()}));
}

Rows::Rows(std::span<const int32_t> row_starts, std::span<const int32_t> positions,
           std::span<const int32_t> block_tables, int64_t width, int n_blocks)
    : row_starts_(row_starts.begin(), row_starts.end()),
      block_tables_(block_tables.begin(), block_tables.end()),
      width_(width),
      n_blocks_(n_blocks) {
  const int64_t n = static_cast<int64_t>(row_starts.size()) - 1;
  require(n >= 0 && row_starts.front() == 0 && row_starts.back() == static_cast<int64_t>(positions.size()) &&
              static_cast<int64_t>(block_tables.size()) == n * width,
          "row_starts, positions and block_tables do not fit together");
  for (int64_t s = 0; s < n; ++s) require(row_starts[s] < row_starts[s + 1], "a sequence without rows");
  for (int64_t s = 0; s < n; ++s) {
    sequences_.resize(static_cast<size_t>(row_starts[s + 1]), static_cast<int32_t>(s));
    const int32_t position = positions[row_starts[s]];
    const int64_t last = int64_t{position} + row_starts[s + 1] - row_starts[s] - 1;
    require(position >= 0 && last / kBlock < width && last <= kMostItems, "a position beyond the sequence's blocks");
    for (int64_t j = 0; j <= last / kBlock; ++j) {
      const int32_t block = block_tables[s * width + j];
      require(block >= 0 && block < n_blocks, "block " + std::to_string(block) + " is not in the cache");
    }
    positions_.push_back(position);
  }
}

Device::Device(int n_threads, bool adapts, const Kernels& kernels, bool exact)
    : kernels_(kernels), exact_(exact), pool_(n_threads, adapts) {}

Weight Device::weight(Format format, int n_in, int n_out) {
  require(n_in > 0 && n_out > 0 && n_in <= kMostItems && n_out <= kMostItems, "a weight of no size");
  Weight weight = {nullptr, format, n_in, n_out};
  const size_t n_tiles = static_cast<size_t>(weight.n_tiles());
  const size_t bytes = checked_product({weight.tile_bytes(), n_tiles, static_cast<size_t>(weight.n_panels())});
  const std::lock_guard lock(arena_mutex_);
  weight.memory = arena_.allocate(bytes);
  return weight;
}

bool Device::pack(const Source& source, int64_t first, const Weight& weight) {
  const int64_t n_rows = source.rows_are_inputs ? weight.n_in : weight.n_out;
  require(source.columns == (source.rows_are_inputs ? weight.n_out : weight.n_in) && first % kTile == 0 &&
              first >= 0 && source.rows <= n_rows && first <= n_rows - source.rows,
          "a source that is no part of the weight");
  return rushlight::pack(source, first, weight, kernels_);
}

Vector Device::vector(int64_t n) {
  require(n >= 0 && n <= kMostItems, "a vector of no size");
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

std::shared_ptr<float> Device::allocate(size_t floats) {
  Plan* plan = Plan::recording();
  return plan == nullptr ? buffers_->allocate(floats) : plan->allocate(floats);
}

Array Device::array(int64_t rows, int64_t columns) {
  require(rows >= 0 && rows <= kMostItems && columns >= 0 && columns <= kMostItems, "an array of too many rows or columns");
  const int64_t stride = round_up(columns, kPanel);
  const size_t bytes = checked_product({static_cast<size_t>(rows), static_cast<size_t>(stride), sizeof(float)});
  std::shared_ptr<float> memory = allocate(bytes / sizeof(float));
  float* data = memory.get();
  return {{data, rows, columns, stride}, shared_from_this(), std::move(memory)};
}

template <class Body>
void Device::share(int64_t n, int64_t least, double work, const View& out, Body&& body) {
  OutOfMemory memory;
  pool_.share(n, least, work, [&](int64_t begin, int64_t end) { memory.watch([&] { body(out, begin, end); }); });
  memory.raise();
  if (Plan* plan = Plan::recording()) plan->add(n, least, work, out, std::forward<Body>(body));
}

template <class Function>
Array Device::each_row(const Array& x, Function&& function) {
  reads(x);
  Array out = array(x.rows, x.columns);
  share(x.rows, kElementsAPart / std::max<int64_t>(x.columns, 1) + 1, out,
        [in = View(x), function](const View& out, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) function(i, in.row(i), out.row(i));
        });
  return out;
}

Array Device::embedding(std::span<const int32_t> ids, const Weight& table) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < table.n_out, "id " + std::to_string(id) + " is beyond the table's " +
                                             std::to_string(table.n_out) + " rows");
  }
  reads(ids, table.n_out);
  Array out = array(static_cast<int64_t>(ids.size()), table.n_in);
  share(out.rows, 8, out, [ids, table](const View& out, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) table.gather(ids[i], out.row(i));
  });
  return out;
}

Array Device::linear(const Array& x, const Weight& weight, const Vector* bias) {
  require(x.columns == weight.n_in, "x has " + std::to_string(x.columns) + " columns, the weight " +
                                        std::to_string(weight.n_in) + " inputs");
  require(bias == nullptr || bias->n == weight.n_out, "the bias is not as long as the outputs");
  reads(x);
  const LinearKernels& kernels = linear_kernels(weight.format);
  Array out = array(x.rows, weight.n_out);
  const uint8_t* input = reinterpret_cast<const uint8_t*>(x.data);
  size_t input_stride = static_cast<size_t>(x.stride) * sizeof(float);
  std::shared_ptr<float> prepared;
  if (kernels.prepare != nullptr) {
    input_stride = kernels.prepared_bytes(weight.n_in);
    const size_t floats = (input_stride * static_cast<size_t>(x.rows) + 3) / 4;
    prepared = allocate(floats);
    auto* bytes = reinterpret_cast<uint8_t*>(prepared.get());
    input = bytes;
    share(x.rows, kElementsAPart / std::max<int64_t>(x.columns, 1) + 1, View{prepared.get()},
          [&kernels, in = View(x), bytes, input_stride](const View&, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              kernels.prepare(in.row(i), static_cast<int>(in.columns), bytes + static_cast<size_t>(i) * input_stride);
            }
          });
  }
  // Parts go along the panels, so that each thread reads one stretch of the weight; many rows are cut as well.
  const int64_t row_parts = std::max<int64_t>((x.rows + kLinearRows - 1) / kLinearRows, 1);
  const double work = static_cast<double>(x.rows * x.columns) * kPanel / static_cast<double>(kElementsAPart * row_parts);
  share(weight.n_panels() * row_parts, 1, work, out,
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

Array Device::layer_norm(const Array& x, const Vector& weight, const Vector& bias, float eps) {
  require(x.columns == weight.n && x.columns == bias.n, "x, weight and bias differ in length");
  return each_row(x, [layer_norm = kernels_.layer_norm, weight, bias, eps](int64_t, const float* in, float* out) {
    layer_norm(in, weight.data(), bias.data(), eps, out, weight.n);
  });
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
  require(a.rows == b.rows && a.columns == b.columns, "the arrays to add differ in shape");
  reads(b);
  return each_row(a, [add = kernels_.add, b = View(b)](int64_t i, const float* in, float* out) {
    add(in, b.row(i), out, static_cast<int>(b.columns));
  });
}

Array Device::multiply(const Array& a, const Array& b) {
  require(a.rows == b.rows && a.columns == b.columns, "the arrays to multiply differ in shape");
  reads(b);
  return each_row(a, [multiply = kernels_.multiply, b = View(b)](int64_t i, const float* in, float* out) {
    multiply(in, b.row(i), out, static_cast<int>(b.columns));
  });
}

Array Device::take(const Array& x, std::span<const int32_t> rows) {
  for (const int32_t row : rows) require(row >= 0 && row < x.rows, "there is no row " + std::to_string(row));
  reads(x);
  reads(rows, x.rows);
  Array out = array(static_cast<int64_t>(rows.size()), x.columns);
  share(out.rows, kElementsAPart / std::max<int64_t>(x.columns, 1) + 1, out,
        [in = View(x), rows](const View& out, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            std::memcpy(out.row(i), in.row(rows[i]), static_cast<size_t>(in.columns) * sizeof(float));
          }
        });
  return out;
}

std::vector<int32_t> Device::sample(const Array& logits, std::span<const SamplingRow> draws) {
  require(logits.rows == static_cast<int64_t>(draws.size()), "there are as many rows as draws");
  require(logits.columns > 0, "there are no logits to choose from");
  for (const SamplingRow& draw : draws) {
    require(draw.temperature >= 0 && std::isfinite(draw.temperature) && draw.top_k >= 0 && draw.top_p > 0 &&
                draw.top_p <= 1 && draw.min_p >= 0 && draw.min_p <= 1 && draw.share >= 0 && draw.share < 1,
            "temperature, top_k, top_p, min_p or share is out of range");
    require(draw.ids.size() == draw.factors.size() && draw.ids.size() == draw.offsets.size(),
            "ids, factors and offsets differ in length");
    require(std::ranges::all_of(draw.ids, [&](int32_t id) { return id >= 0 && id < logits.columns; }),
            "an id is beyond the logits");
    require(draw.allowed.empty() || static_cast<int64_t>(draw.allowed.size()) == logits.columns,
            "it is not said of every token whether it is allowed");
  }
  std::vector<int32_t> chosen(draws.size());
  const auto choose_rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::span row(logits.row(i), static_cast<size_t>(logits.columns));
      chosen[static_cast<size_t>(i)] = rushlight::sample(row, draws[static_cast<size_t>(i)], kernels_);
    }
  };
  OutOfMemory memory;
  const int64_t least = kElementsAPart / logits.columns + 1;
  pool_.share(logits.rows, least, Pool::work_of(least),
              [&](int64_t begin, int64_t end) { memory.watch([&] { choose_rows(begin, end); }); });
  memory.raise();
  return chosen;
}

Array Device::unfold(const Array& x, std::span<const int32_t> rows, int64_t size) {
  reads(x);
  reads(rows, x.rows);
  require(size > 0 && size <= kMostItems, "unfold needs at least one row a window");
  Array out = array(static_cast<int64_t>(rows.size()) / size, size * x.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows[i] >= -1 && rows[i] < x.rows, "there is no row " + std::to_string(rows[i]));
    float* to = out.row(static_cast<int64_t>(i) / size) + static_cast<int64_t>(i) % size * x.columns;
    if (rows[i] < 0) {
      std::fill_n(to, x.columns, 0.0f);
    } else {
      std::memcpy(to, x.row(rows[i]), static_cast<size_t>(x.columns) * sizeof(float));
    }
  }
  return out;
}

std::vector<Array> Device::split(const Array& x, int n) {
  require(n > 0 && n <= x.columns && x.columns % n == 0, "the columns cannot be split evenly");
  std::vector<Array> parts(static_cast<size_t>(n), x);
  for (int i = 0; i < n; ++i) {
    parts[i].columns = x.columns / n;
    parts[i].data = x.data + i * parts[i].columns;
  }
  return parts;
}

Array Device::attention(const Array& q, const Array& k, const Array& v, const Rows& rows, const KVCache& cache,
                        int layer, float scale) {
  const int64_t n = rows.n_rows(), columns = int64_t{cache.n_head} * cache.head_dim;
  for (const Array* x : {&q, &k, &v}) {
    require(x->rows == n && x->columns == columns, "queries, keys and values do not fit the batch and the cache");
  }
  require(layer >= 0 && layer < cache.n_layer && rows.n_blocks() == cache.n_blocks, "another cache's batch or layer");
  require(cache.memory != nullptr, "a plan's cache is there only while the plan is recorded");
  reads(q), reads(k), reads(v), reads(rows, cache);
  const int head_dim = cache.head_dim;
  const auto keep = kernels_.keep[static_cast<int>(cache.format)];
  const auto attend = kernels_.attention[static_cast<int>(cache.format)];
  const int64_t items = n * cache.n_head;  // head by head, all rows of each

  // First all keys and values into the cache, then the products: a row's position may be another part's row.
  share(items, kElementsAPart / head_dim + 1, View{},
        [&rows, &cache, k = View(k), v = View(v), n, layer, head_dim, keep](const View&, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int head = static_cast<int>(i / n), row = static_cast<int>(i % n), s = rows.sequence(row);
            const int position = rows.position(s) + row - rows.begin(s), at = position % kBlock;
            const auto block = static_cast<size_t>(rows.blocks(s)[position / kBlock]);
            keep(k.row(row) + head * head_dim, v.row(row) + head * head_dim, head_dim,
                 cache.keys(layer, head, block) + at * cache.item_bytes(),
                 cache.values(layer, head, block) + at * cache.value_stride * cache.item_bytes());
          }
        });

  // Rows of one sequence and head go through its cache a few at a time.
  Array out = array(n, columns);
  double positions = 0;
  for (int s = 0; s < rows.n_sequences(); ++s) {
    positions += static_cast<double>(rows.end(s) - rows.begin(s)) * (rows.position(s) + 1);
  }
  const double work = 2 * positions * head_dim / static_cast<double>(std::max<int64_t>(n, 1) * kElementsAPart);
  share(items, 1, work, out,
        [&rows, &cache, q = View(q), n, layer, head_dim, attend, scale](const View& out, int64_t begin, int64_t end) {
          thread_local std::vector<float> scratch;
          scratch.resize(attention_scratch(cache.value_stride));
          for (int64_t i = begin, last = 0; i < end; i = last) {
            const int head = static_cast<int>(i / n), row = static_cast<int>(i % n), s = rows.sequence(row);
            last = std::min(end, i + std::min(rows.end(s) - row, kAttentionRows));
            const AttentionJob job = {q.row(rows.begin(s)) + head * head_dim,
                                      static_cast<size_t>(q.stride),
                                      out.row(rows.begin(s)) + head * head_dim,
                                      static_cast<size_t>(out.stride),
                                      cache.keys(layer, head, 0),
                                      cache.values(layer, head, 0),
                                      cache.block_step(),
                                      cache.value_stride,
                                      rows.blocks(s),
                                      rows.position(s),
                                      head_dim,
                                      scale};
            const int first = row - rows.begin(s);
            attend(job, first, first + static_cast<int>(last - i), scratch.data());
          }
        });
  return out;
}

}  // namespace rushlight
