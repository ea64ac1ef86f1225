// Python bindings: the module rushlight.backends._native, declared in _native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <functional>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <variant>

#include "device.h"
#include "gil.h"
#include "governor.h"
#include "isa.h"
#include "plan.h"
#include "require.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace rushlight {

namespace {

template <class T, int kDims>
using NumPy = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

template <class... Parts>
auto span(const nb::ndarray<Parts...>& array) {
  return std::span(array.data(), array.size());
}

template <size_t kCount>
int index_of(const char* const (&names)[kCount], const std::string& name, const char* what) {
  const auto* found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) throw std::invalid_argument("no such " + std::string(what) + ": " + name);
  return static_cast<int>(found - names);
}

std::vector<std::string> names(const std::vector<const Kernels*>& kernels) {
  std::vector<std::string> names;
  for (const Kernels* k : kernels) names.emplace_back(k->name);
  return names;
}

std::shared_ptr<Device> make_device(int n_threads, const std::string& isa, bool exact, bool adapts) {
  require(n_threads >= 1, "threads is ", n_threads, ": expected at least 1");
  for (const Kernels* kernels : available_kernels()) {
    if (kernels->name == isa) return std::make_shared<Device>(n_threads, adapts, *kernels, exact);
  }
  throw std::invalid_argument("this processor does not support " + isa);
}

// Values that enter a step from outside, or leave it in the middle, may differ the next time.
void invalidate_recording(const char* reason) {
  if (Plan* plan = Plan::recording()) plan->invalidate(reason);
}

// The ids, positions or logit rows of a plan: opaque, since the plan is for any values.
struct Ids {
  std::span<const int32_t> values;
};

constexpr const char* kOpaqueIds =
    "ids, positions and logit_rows have no values while a step is recorded: pass them unchanged to an operation: "
    "embedding (with first_row for an offset), angles or take";

// Special methods by which Python or NumPy computes with an array of numbers.
constexpr const char* kNumericMethods[] = {
    "__add__",      "__radd__",    "__sub__",    "__rsub__",    "__mul__",       "__rmul__",     "__matmul__",
    "__rmatmul__",  "__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__",   "__rmod__",
    "__divmod__",   "__rdivmod__", "__pow__",    "__rpow__",    "__and__",       "__rand__",     "__or__",
    "__ror__",      "__xor__",     "__rxor__",   "__lshift__",  "__rlshift__",   "__rshift__",   "__rrshift__",
    "__neg__",      "__pos__",     "__abs__",    "__invert__",  "__getitem__",   "__iter__",     "__contains__",
    "__int__",      "__index__",   "__float__",  "__array__"};
constexpr const char* kComparisons[] = {"__lt__", "__le__", "__eq__", "__ne__", "__gt__", "__ge__"};

// An attribute that neither a plan nor Ids has: one of the batch, or of an array, that is not known while recording.
nb::object unknown_attribute(const char* owner, const std::string& name, const std::string& explanation) {
  if (name.starts_with("__")) throw nb::attribute_error((std::string(owner) + " has no attribute " + name).c_str());
  throw NotRecordable(explanation);
}

// The rows of a batch: `block_tables` has for each group, or for all, the table of each sequence.
Rows rows_of(const NumPy<int32_t, 1>& row_starts, const NumPy<int32_t, 1>& positions, nb::handle block_tables,
             const KVCache& cache) {
  auto arrays = std::make_shared<std::vector<NumPy<int32_t, 1>>>();
  std::vector<BlockTable> tables;
  for (const nb::handle of_group : block_tables) {
    for (const nb::handle table : of_group) {
      arrays->push_back(nb::cast<NumPy<int32_t, 1>>(table, false));
      tables.push_back(span(arrays->back()));
    }
  }
  return Rows(span(row_starts), span(positions), std::move(tables), cache, std::move(arrays));
}

// batch.py's Batch, with views of its arrays. They and the cache are held: the attributes may be properties that return
// another object each time.
struct Batch {
  explicit Batch(nb::handle batch)
      : ids(nb::cast<NumPy<int32_t, 1>>(batch.attr("ids"), false)),
        positions(nb::cast<NumPy<int32_t, 1>>(batch.attr("positions"), false)),
        logit_rows(nb::cast<NumPy<int32_t, 1>>(batch.attr("logit_rows"), false)),
        cache_object(batch.attr("cache")),
        cache(nb::cast<const KVCache&>(cache_object)),
        rows(rows_of(nb::cast<NumPy<int32_t, 1>>(batch.attr("row_starts"), false), positions,
                     batch.attr("block_tables"), cache)) {}

  StepInputs inputs() const { return {span(ids), span(positions), span(logit_rows), rows, cache}; }

  NumPy<int32_t, 1> ids, positions, logit_rows;
  nb::object cache_object;
  const KVCache& cache;
  Rows rows;
};

// protocol.py's SamplingRows, with views of the arrays that they hold; nothing is converted, since a converted array
// would be freed before it is read. The tuples are held: a sequence may make them on access.
struct SamplingRows {
  explicit SamplingRows(const nb::sequence& rows) {
    for (const nb::handle row : rows) add(tuple_of(row, 7));
  }

  std::vector<SamplingRow> read;

 private:
  void add(const nb::tuple& row) {
    held_.push_back(row);
    SamplingRow& last = read.emplace_back();
    last.temperature = nb::cast<double>(row[0]);
    last.top_k = nb::cast<int64_t>(row[1]);
    last.top_p = nb::cast<double>(row[2]);
    last.min_p = nb::cast<double>(row[3]);
    last.uniform = nb::cast<double>(row[4]);
    if (!row[5].is_none()) {
      const nb::tuple adjustments = tuple_of(row[5], 3);
      last.ids = span(nb::cast<NumPy<int32_t, 1>>(adjustments[0], false));
      last.factors = span(nb::cast<NumPy<double, 1>>(adjustments[1], false));
      last.offsets = span(nb::cast<NumPy<double, 1>>(adjustments[2], false));
    }
    if (!row[6].is_none()) {
      const auto allowed = nb::cast<NumPy<bool, 1>>(row[6], false);
      // As bytes: a NumPy array may hold any byte, a C++ bool only 0 and 1.
      last.allowed = {reinterpret_cast<const uint8_t*>(allowed.data()), allowed.size()};
    }
  }

  // A SamplingRow, or its LogitAdjustments.
  static nb::tuple tuple_of(nb::handle object, size_t size) {
    auto tuple = nb::cast<nb::tuple>(object);
    require(nb::len(tuple) == size, "expected a SamplingRow of 7 fields or LogitAdjustments of 3, found a tuple of ",
            nb::len(tuple));
    return tuple;
  }

  std::vector<nb::tuple> held_;
};

// Whether the array's layout satisfies a consumer's buffer flags.
bool satisfies(const Array& array, int flags) {
  const auto asks = [flags](int flag) { return (flags & flag) == flag; };
  const bool by_rows = array.stride == array.columns || array.rows <= 1;
  const bool by_columns = array.rows <= 1 || (array.columns == 1 && array.stride == 1);
  if (asks(PyBUF_F_CONTIGUOUS) && !asks(PyBUF_C_CONTIGUOUS) && !asks(PyBUF_ANY_CONTIGUOUS)) return by_columns;
  if (asks(PyBUF_ANY_CONTIGUOUS)) return by_rows || by_columns;
  return by_rows || (asks(PyBUF_STRIDES) && !asks(PyBUF_C_CONTIGUOUS));
}

void check_offset(int64_t offset) {
  require(offset >= 0 && offset <= std::numeric_limits<int64_t>::max() / 2, "not a valid file offset: ", offset);
}

// The buffer protocol, by which numpy.asarray(array) is a view.
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  view->obj = nullptr;
  if (!nb::inst_ready(self)) {
    PyErr_SetString(PyExc_BufferError, "the array was not made by a device");
    return -1;
  }
  const auto& array = *nb::inst_ptr<Array>(self);
  if (!satisfies(array, flags)) {
    PyErr_SetString(PyExc_BufferError, "the rows are not contiguous: ask for a strided buffer");
    return -1;
  }
  auto* dims = new (std::nothrow)
      Py_ssize_t[4]{array.rows, array.columns, array.stride * Py_ssize_t{sizeof(float)}, sizeof(float)};
  if (dims == nullptr) {
    PyErr_NoMemory();
    return -1;
  }
  invalidate_recording("it reads the values of an array in the middle of the step");
  array.device->expose(array);
  view->obj = Py_NewRef(self);
  view->buf = array.data;
  view->len = array.rows * array.columns * Py_ssize_t{sizeof(float)};
  view->itemsize = sizeof(float);
  view->readonly = 0;
  view->ndim = 2;
  view->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>("f") : nullptr;
  view->shape = dims;
  view->strides = dims + 2;
  view->suboffsets = nullptr;
  view->internal = dims;
  return 0;
}

void release_buffer(PyObject*, Py_buffer* view) { delete[] static_cast<Py_ssize_t*>(view->internal); }

PyType_Slot array_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                             {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
                             {0, nullptr}};

// Computing with a weight fails where it is written, on every device: see backends/reference.py.
constexpr const char* kOpaqueWeight =
    "a weight is opaque: pass it to an operation of self.ops, or read its numbers with self.values(\"weight\"), the "
    "name being its attribute";

// Without an `__array__` that raises, NumPy would make an array of one object.
template <class Weight>
void make_opaque(nb::class_<Weight>& weight) {
  weight.attr("__array_ufunc__") = nb::none();  // the operators of NumPy arrays then call those of the weight
  for (const char* name : kNumericMethods) {
    weight.def(name, [](const Weight&, const nb::args&, const nb::kwargs&) { throw nb::type_error(kOpaqueWeight); });
  }
}

// A NumPy array that owns its memory.
nb::ndarray<nb::numpy, float> new_array(std::initializer_list<size_t> shape, const std::function<void(float*)>& fill) {
  auto* values = new float[checked_product(shape)];
  const nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  fill(values);
  return nb::ndarray<nb::numpy, float>(values, shape, owner);
}

}  // namespace

NB_MODULE(_native, m) {
#if !defined(RUSHLIGHT_LEAK_WARNINGS)
  nb::set_leak_warnings(false);  // a daemon thread may hold a model at exit: users can do little about that
#endif
  m.attr("TILE_VERSION") = kTileVersion;
  m.def("instruction_sets", [] { return names(available_kernels()); });
  m.def("is_instruction_set", [](const std::string& name) { return is_instruction_set(name); });

  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const NotRecordable& e) {
      const nb::object type = nb::module_::import_("rushlight.backends.protocol").attr("NotRecordableError");
      PyErr_SetString(type.ptr(), e.what());
    }
  });

  const auto scaled = [](const Array& a, double factor) {
    return unlocked([&] { return a.device->scale(a, static_cast<float>(factor)); });
  };
  nb::class_<Array> array(m, "Array", nb::type_slots(array_slots));
  array.attr("__array_priority__") = 1000.0;  // so that `numpy.float32(2) * array` calls __rmul__
  array.def_prop_ro("shape", [](const Array& a) { return nb::make_tuple(a.rows, a.columns); })
      .def("__add__", [](const Array& a, const Array& b) { return unlocked([&] { return a.device->add(a, b); }); },
           nb::is_operator())
      .def("__mul__", [](const Array& a, const Array& b) { return unlocked([&] { return a.device->multiply(a, b); }); },
           nb::is_operator())
      .def("__mul__", scaled, nb::is_operator())
      .def("__rmul__", scaled, nb::is_operator());

  nb::class_<Vector> vector(m, "Vector", nb::is_weak_referenceable());
  vector.def_prop_ro("shape", [](const Vector& v) { return nb::make_tuple(v.n); });
  make_opaque(vector);

  nb::class_<Weight> weight(m, "Weight", nb::is_weak_referenceable());
  weight.def_prop_ro("shape", [](const Weight& w) { return nb::make_tuple(w.n_out, w.n_in); })
      .def_prop_ro("format", [](const Weight& w) { return kFormatNames[static_cast<int>(w.format)]; })
      .def_prop_ro("nbytes", &Weight::bytes)
      .def("tobytes", [](const Weight& w) { return nb::bytes(w.memory.get(), w.bytes()); });
  make_opaque(weight);

  nb::class_<Mapping>(m, "Mapping")
      .def(nb::new_([](int fd, int64_t bytes) {
             require(bytes > 0, "a mapping of ", bytes, " bytes: expected at least 1");
             try {
               return std::make_shared<Mapping>(fd, static_cast<size_t>(bytes));
             } catch (const std::system_error& error) {
               errno = error.code().value();
               PyErr_SetFromErrno(PyExc_OSError);
               throw nb::python_error();
             }
           }),
           "fd"_a, "n_bytes"_a)
      .def_static("guard", &Mapping::guard)
      .def_prop_ro("fd", &Mapping::fd)
      .def_prop_ro("failed", &Mapping::failed);

  nb::class_<KVCache>(m, "KVCache")
      .def_prop_ro("groups", [](const KVCache& c) {
        std::vector<std::pair<int, int>> groups;
        for (const KVGroup& group : c.groups) groups.emplace_back(group.window, group.n_blocks);
        return groups;
      })
      .def_prop_ro("format", [](const KVCache& c) { return kFormatNames[static_cast<int>(c.format)]; })
      .def_prop_ro("nbytes", [](const KVCache& c) { return c.bytes; });

  nb::class_<Rows>(m, "Rows");

  nb::enum_<LoadProblem>(m, "LoadProblem")
      .value("NONE", LoadProblem::kNone)
      .value("NOT_FINITE", LoadProblem::kNotFinite)
      .value("NOT_READ", LoadProblem::kNotRead);

  nb::class_<Load>(m, "Load")
      .def("__init__",
           [](Load* self, const Weight& to, int fd, int64_t offset, const std::string& dtype, bool rows_are_inputs) {
             const int64_t rows = rows_are_inputs ? to.n_in : to.n_out, columns = rows_are_inputs ? to.n_out : to.n_in;
             check_offset(offset);
             require(!to.is_mapped, "a weight in a mapped file cannot be written to");
             new (self) Load{to, fd, offset, {nullptr, Source::dtype_of(dtype), rows, columns, rows_are_inputs}};
           },
           "to"_a, "fd"_a, "offset"_a, "dtype"_a, "rows_are_inputs"_a)
      .def("__init__",
           [](Load* self, const Weight& to, int fd, int64_t offset) {
             check_offset(offset);
             require(!to.is_mapped, "a weight in a mapped file cannot be written to");
             new (self) Load{to, fd, offset, {nullptr, Source::Dtype::kF32, 0, 0, false}, true};
           },
           "to"_a, "fd"_a, "offset"_a)
      .def("__init__",
           [](Load* self, const Vector& to, int fd, int64_t offset, const std::string& dtype) {
             check_offset(offset);
             new (self) Load{to, fd, offset, {nullptr, Source::dtype_of(dtype), 1, to.n, false}};
           },
           "to"_a, "fd"_a, "offset"_a, "dtype"_a);

  nb::class_<Ids> ids(m, "Ids");
  ids.def_prop_ro("shape", [](const Ids& ids) { return nb::make_tuple(ids.values.size()); })
      .def("__len__", [](const Ids& ids) { return ids.values.size(); })
      .def("__getattr__",
           [](const Ids&, const std::string& name) { return unknown_attribute("Ids", name, kOpaqueIds); });
  const auto raise = [](const Ids&, const nb::args&, const nb::kwargs&) { throw NotRecordable(kOpaqueIds); };
  for (const char* name : kNumericMethods) ids.def(name, raise);
  for (const char* name : kComparisons) ids.def(name, raise);
  for (const char* name : {"__bool__", "__array_ufunc__", "__array_function__"}) ids.def(name, raise);

  nb::class_<Plan>(m, "Plan")
      .def_prop_ro("n_stages", &Plan::n_stages)  // for tests
      .def_prop_ro("ids", [](const Plan& p) { return Ids{p.ids()}; }, nb::keep_alive<0, 1>())
      .def_prop_ro("positions", [](const Plan& p) { return Ids{p.positions()}; }, nb::keep_alive<0, 1>())
      .def_prop_ro("logit_rows", [](const Plan& p) { return Ids{p.logit_rows()}; }, nb::keep_alive<0, 1>())
      .def_prop_ro("rows", &Plan::rows, nb::rv_policy::reference_internal)
      .def_prop_ro("cache", &Plan::cache, nb::rv_policy::reference_internal)
      .def("__getattr__",
           [](const Plan&, const std::string& name) {
             return unknown_attribute("Plan", name, "batch." + name + " is not known while a step is recorded");
           })
      .def("record",
           [](nb::handle_t<Plan> self, const nb::callable& forward) {
             auto& plan = nb::cast<Plan&>(self);
             const Plan::Recording recording(plan);
             return or_sleep([&] { return forward(self); });
           },
           "forward"_a)
      .def("finish", &Plan::finish, "out"_a)
      .def("run",
           [](Plan& p, nb::handle batch) {
             const Batch read(batch);
             return unlocked([&] { return p.run(read.inputs()); });
           },
           "batch"_a);

  // For tests: each device has its own.
  nb::class_<Governor>(m, "Governor")
      .def(nb::init<int>(), "most"_a)
      .def("threads",
           [](Governor& g, uintptr_t what, double work, int64_t now) {
             return g.threads(reinterpret_cast<const void*>(what), work, now);
           },
           "what"_a, "work"_a, "now"_a)
      .def("ran",
           [](Governor& g, uintptr_t what, double work, int threads, int64_t began, int64_t ended, int64_t waited) {
             g.ran({reinterpret_cast<const void*>(what), work, threads, began, ended, waited});
           },
           "what"_a, "work"_a, "threads"_a, "began"_a, "ended"_a, "waited"_a)
      .def_static("gives_up", &Governor::gives_up, "threads"_a, "elapsed"_a, "waited"_a);

  nb::class_<Device>(m, "Device")
      .def(nb::new_(&make_device), "threads"_a, "isa"_a, "exact"_a = false, "adapts"_a = false)
      .def_prop_ro("threads", &Device::n_threads)
      .def_prop_ro("isa", &Device::isa)
      .def("is_exact", [](const Device& device, const std::string& format) {
        return device.is_exact(static_cast<Format>(index_of(kFormatNames, format, "format")));
      }, "format"_a)
      .def("weight",
           [](Device& d, const std::string& format, int n_in, int n_out) {
             invalidate_recording("it loads a weight");
             return d.weight(static_cast<Format>(index_of(kFormatNames, format, "format")), n_in, n_out);
           },
           "format"_a, "n_in"_a, "n_out"_a)
      .def("weight",
           [](Device& d, const std::string& format, int n_in, int n_out, std::shared_ptr<Mapping> mapping,
              int64_t offset) {
             invalidate_recording("it loads a weight");
             const auto stored = static_cast<Format>(index_of(kFormatNames, format, "format"));
             return d.weight(stored, n_in, n_out, std::move(mapping), offset);
           },
           "format"_a, "n_in"_a, "n_out"_a, "mapping"_a, "offset"_a)
      .def("pack",
           [](Device& d, const Weight& weight, const NumPy<uint8_t, 1>& raw, const std::string& dtype, int64_t columns,
              bool rows_are_inputs, int64_t first) {
             Source source = {raw.data(), Source::dtype_of(dtype), 0, columns, rows_are_inputs};
             const auto row_bytes = static_cast<size_t>(columns) * Source::item_bytes(source.dtype);
             require(columns > 0 && columns <= std::numeric_limits<int32_t>::max() && raw.size() % row_bytes == 0,
                     "expected a whole number of rows of ", columns, " columns, found ", raw.size(), " bytes");
             source.rows = static_cast<int64_t>(raw.size() / row_bytes);
             return unlocked([&] { return d.pack(source, first, weight); });
           },
           "weight"_a, "raw"_a, "dtype"_a, "columns"_a, "rows_are_inputs"_a, "first"_a)
      .def("load",
           [](Device& d, const std::vector<Load>& loads) { return unlocked([&] { return d.load(loads); }); },
           "loads"_a)
      .def("hurry", &Device::hurry)
      .def("unpack",
           [](Device& d, const Weight& w) {
             return new_array({static_cast<size_t>(w.n_out), static_cast<size_t>(w.n_in)},
                              [&](float* values) { unlocked([&] { d.unpack(w, values); }); });
           },
           "weight"_a)
      .def("unpack",
           [](Device&, const Vector& v) {
             return new_array({static_cast<size_t>(v.n)}, [&](float* values) { std::copy_n(v.data(), v.n, values); });
           },
           "vector"_a)
      .def("read", [](Device& d, const Weight& w) { return unlocked([&] { return d.read(w); }); }, "weight"_a)
      .def("peak",
           [](Device& d, const std::string& format, int64_t parts) {
             const auto units = static_cast<Format>(index_of(kFormatNames, format, "format"));
             return unlocked([&] { return d.peak(units, parts); });
           },
           "format"_a, "parts"_a)
      .def("vector",
           [](Device& d, int64_t n) {
             invalidate_recording("it loads a weight");
             return d.vector(n);
           },
           "n"_a)
      .def("vector",
           [](Device& d, const NumPy<float, 1>& values) {
             invalidate_recording("it loads a weight");
             Vector vector = d.vector(static_cast<int64_t>(values.size()));
             std::copy_n(values.data(), values.size(), reinterpret_cast<float*>(vector.memory.get()));
             return vector;
           },
           "values"_a)
      .def("array",
           [](Device& d, const NumPy<float, 2>& values) {
             invalidate_recording("it makes an array from values in host memory");
             Array array = d.array(static_cast<int64_t>(values.shape(0)), static_cast<int64_t>(values.shape(1)));
             for (int64_t i = 0; i < array.rows; ++i) {
               std::copy_n(values.data() + i * array.columns, array.columns, array.row(i));
             }
             return array;
           },
           "values"_a)
      .def("kv_cache",
           [](Device&, const std::string& format, int n_layer, int n_kv_head, int head_dim,
              const std::variant<int, std::vector<int>>& n_blocks, const std::vector<std::optional<int>>& windows) {
             const auto stored = static_cast<Format>(index_of(kFormatNames, format, "format"));
             require(windows.empty() || static_cast<int>(windows.size()) == n_layer,
                     "found ", windows.size(), " windows for ", n_layer, " layers");
             if (n_layer > 1 << 20) throw std::bad_alloc();
             std::vector<int> of_layers(static_cast<size_t>(std::max(n_layer, 0)), kNoWindow);
             for (size_t i = 0; i < windows.size(); ++i) of_layers[i] = windows[i].value_or(kNoWindow);
             const auto* for_all = std::get_if<int>(&n_blocks);
             return for_all != nullptr ? KVCache(stored, of_layers, n_kv_head, head_dim, std::span(for_all, 1))
                                       : KVCache(stored, of_layers, n_kv_head, head_dim, std::get<1>(n_blocks));
           },
           "format"_a, "n_layer"_a, "n_kv_head"_a, "head_dim"_a, "n_blocks"_a, "windows"_a = std::vector<int>())
      .def("rows",
           [](Device&, const NumPy<int32_t, 1>& row_starts, const NumPy<int32_t, 1>& positions, nb::handle block_tables,
              const KVCache& cache) { return rows_of(row_starts, positions, block_tables, cache); },
           "row_starts"_a, "positions"_a, "block_tables"_a, "cache"_a)
      .def("embedding",
           [](Device& d, const NumPy<int32_t, 1>& ids, const Weight& table, int64_t first_row) {
             return unlocked([&] { return d.embedding(span(ids), table, first_row); });
           },
           "ids"_a, "table"_a, "first_row"_a = 0)
      .def("embedding",
           [](Device& d, const Ids& ids, const Weight& table, int64_t first_row) {
             return unlocked([&] { return d.embedding(ids.values, table, first_row); });
           },
           "ids"_a, "table"_a, "first_row"_a = 0)
      .def("linear",
           [](Device& d, const Array& x, const Weight& weight, const Vector* bias) {
             return unlocked([&] { return d.linear(x, weight, bias); });
           },
           "x"_a, "weight"_a, "bias"_a.none())
      .def("layer_norm",
           [](Device& d, const Array& x, const Vector& weight, const Vector* bias, float eps) {
             return unlocked([&] { return d.layer_norm(x, weight, bias, eps); });
           },
           "x"_a, "weight"_a, "bias"_a.none(), "eps"_a)
      .def("rms_norm",
           [](Device& d, const Array& x, const Vector& weight, float eps, float offset) {
             return unlocked([&] { return d.rms_norm(x, weight, eps, offset); });
           },
           "x"_a, "weight"_a, "eps"_a, "offset"_a = 0.0f)
      .def("angles",
           [](Device& d, const NumPy<int32_t, 1>& positions, const Vector& frequencies, float scale) {
             return unlocked([&] { return d.angles(span(positions), frequencies, scale); });
           },
           "positions"_a, "frequencies"_a, "scale"_a = 1.0f)
      .def("angles",
           [](Device& d, const Ids& positions, const Vector& frequencies, float scale) {
             return unlocked([&] { return d.angles(positions.values, frequencies, scale); });
           },
           "positions"_a, "frequencies"_a, "scale"_a = 1.0f)
      .def("rotary",
           [](Device& d, const Array& x, const Array& angles, int n_head, bool interleaved) {
             return unlocked([&] { return d.rotary(x, angles, n_head, interleaved); });
           },
           "x"_a, "angles"_a, "n_head"_a, nb::kw_only(), "interleaved"_a = false)
      .def("activation",
           [](Device& d, const Array& x, const std::string& name) {
             const auto kind = static_cast<ActivationKind>(index_of(kActivationNames, name, "activation"));
             return unlocked([&] { return d.activation(x, kind); });
           },
           "x"_a, "name"_a)
      .def("exp", [](Device& d, const Array& x) { return unlocked([&] { return d.exp(x); }); }, "x"_a)
      .def("sample",
           [](Device& d, const Array& logits, const nb::sequence& rows) {
             invalidate_recording("it samples a token");
             const SamplingRows held(rows);
             return unlocked([&] { return d.sample(logits, held.read); });
           },
           "logits"_a, "rows"_a)
      .def("split",
           [](Device& d, const Array& x, int64_t n, int64_t groups) {
             const int64_t columns = groups > 0 ? x.columns / groups : 0;
             require(n >= 1 && n <= columns && columns % n == 0, "the columns cannot be split evenly: ", x.columns,
                     " into ", n, " parts of ", groups, groups == 1 ? " group" : " groups");
             const std::vector<int64_t> sizes(static_cast<size_t>(n), columns / n);
             return unlocked([&] { return d.split(x, sizes, groups); });
           },
           "x"_a, "sizes"_a, nb::kw_only(), "groups"_a = 1)
      .def("split",
           [](Device& d, const Array& x, const std::vector<int64_t>& sizes, int64_t groups) {
             return unlocked([&] { return d.split(x, sizes, groups); });
           },
           "x"_a, "sizes"_a, nb::kw_only(), "groups"_a = 1)
      .def("join", [](Device& d, const std::vector<Array>& parts) { return unlocked([&] { return d.join(parts); }); },
           "parts"_a)
      .def("take",
           [](Device& d, const Array& x, const NumPy<int32_t, 1>& rows) { return d.take(x, span(rows)); }, "x"_a,
           "rows"_a)
      .def("take", [](Device& d, const Array& x, const Ids& rows) { return d.take(x, rows.values); }, "x"_a, "rows"_a)
      .def("unfold",
           [](Device& d, const Array& x, const NumPy<int32_t, 2>& rows) {
             return d.unfold(x, span(rows), static_cast<int64_t>(rows.shape(1)));
           },
           "x"_a, "rows"_a)
      .def("plan",
           [](Device& d, nb::handle batch) {
             const Batch read(batch);
             return std::make_unique<Plan>(d.shared_from_this(), read.inputs());
           },
           "batch"_a)
      .def("attention",
           [](Device& d, const Array& q, const Array& k, const Array& v, const Rows& rows, const KVCache& cache,
              int layer, int n_head, float scale, std::optional<int> window, const Vector* slopes,
              std::optional<float> softcap) {
             require(!softcap || *softcap > 0, "softcap is ", softcap.value_or(0), ": expected a positive number");
             const ScoreOptions options = {window.value_or(kNoWindow), slopes, softcap.value_or(0.0f)};
             return unlocked([&] { return d.attention(q, k, v, rows, cache, layer, n_head, scale, options); });
           },
           "q"_a, "k"_a, "v"_a, "rows"_a, "cache"_a, "layer"_a, "n_head"_a, "scale"_a, "window"_a = nb::none(),
           "slopes"_a = nb::none(), "softcap"_a = nb::none());
}

}  // namespace rushlight
