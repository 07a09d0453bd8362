#include "dlpack.h"

#include <pybind11/gil_safe_call_once.h>

#include <cstdlib>
#include <string>

#include "../../cpu/runtime/mapping.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// The DLPack C ABI (version 1), written out: only what is read here.
struct DLDevice {
  int32_t type;
  int32_t id;
};
struct DLType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLVersion {
  uint32_t major;
  uint32_t minor;
};
struct DLManagedVersioned {
  DLVersion version;
  void* manager;
  void (*deleter)(DLManagedVersioned*);
  uint64_t flags;
  DLTensor tensor;
};
constexpr uint64_t kReadOnly = 1;
// What a type offers to C for its objects; only one of these functions is used here.
struct DLExchange {
  DLVersion version;
  const void* older;
  const void* allocate;
  int (*export_without_stream)(void* object, DLManagedVersioned** out);
};
// The version asked for; a producer may answer with any, whose layout is this one's if it starts
// with 1.
constexpr int kMajor = 1, kMinor = 1;

enum Type : int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };

// Pinned memory is the CPU's; managed memory counts as the device's it is said to be on.
bool on_cpu(DLDevice device) { return device.type == cpu || device.type == cuda_host; }
bool on_cuda(DLDevice device) { return device.type == cuda || device.type == cuda_managed; }

std::string device_name(DLDevice device) {
  if (on_cpu(device)) return "the CPU";
  if (on_cuda(device)) return "CUDA device " + std::to_string(device.id);
  return "a device of DLPack's type " + std::to_string(device.type);
}

void check_device(DLDevice device, const Place& place, const char* name) {
  const bool wants_cpu = place.device == Place::kCpu;
  if (wants_cpu ? on_cpu(device) : on_cuda(device) && device.id == place.device) return;
  const std::string want = device_name({wants_cpu ? cpu : cuda, place.device});
  check(false, name, " must be on ", want, ", got one on ", device_name(device));
}

Dtype to_dtype(DLType type, const char* name) {
  enum Code : uint8_t { integer = 0, unsigned_integer = 1, floating = 2, bfloat = 4, boolean = 6 };
  check(type.lanes == 1, name, ": vector element types are not supported");
  const int code = type.code;
  const int bits = type.bits;
  if (code == floating && bits == 32) return Dtype::f32;
  if (code == floating && bits == 16) return Dtype::f16;
  if (code == floating && bits == 64) return Dtype::f64;
  if (code == bfloat && bits == 16) return Dtype::bf16;
  if (code == integer && bits == 32) return Dtype::i32;
  if (code == integer && bits == 64) return Dtype::i64;
  if (code == unsigned_integer && bits == 8) return Dtype::u8;
  if (code == boolean && bits == 8) return Dtype::boolean;
  check(
      false, name, ": element type with DLPack code ", code, " and ", bits, " bits is not supported"
  );
  return Dtype::f32;
}

// The names that an array is asked by, and what a call of __dlpack__ is made of; made once.
struct Words {
  py::object method = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("__dlpack__"));
  py::object exchange =
      py::reinterpret_steal<py::object>(PyUnicode_InternFromString("__dlpack_c_exchange_api__"));
  py::object version = py::make_tuple(kMajor, kMinor);
  py::object keys = py::make_tuple("max_version");
  py::object keys_on_device = py::make_tuple("max_version", "stream");
};

const Words& words() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Words> storage;
  return storage.call_once_and_store_result([] { return Words(); }).get_stored();
}

std::string type_name(py::handle object) {
  return std::string(py::str(py::type::handle_of(object).attr("__name__")));
}

[[noreturn]] void fail_array(py::handle object, const char* name) {
  throw py::type_error(
      std::string(name) +
      " must be an array with __dlpack__ (a torch tensor or a NumPy array), got " +
      type_name(object)
  );
}

// What the type itself offers to C, and not a type that it is derived from: a derived type may mean
// something else by its objects.
const DLExchange* exchange_of(PyTypeObject* type) {
  PyObject* name = words().exchange.ptr();
  PyObject* offered = _PyType_Lookup(type, name);
  if (offered == nullptr || !PyCapsule_IsValid(offered, "dlpack_exchange_api")) return nullptr;
  if (type->tp_base != nullptr && _PyType_Lookup(type->tp_base, name) == offered) return nullptr;
  const auto* exchange =
      static_cast<const DLExchange*>(PyCapsule_GetPointer(offered, "dlpack_exchange_api"));
  return exchange->version.major == kMajor ? exchange : nullptr;
}

void free_capsule(PyObject* capsule) {
  auto* managed =
      static_cast<DLManagedVersioned*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
  if (managed != nullptr && managed->deleter != nullptr) managed->deleter(managed);
}

// The capsule of a type that is asked in C: torch's method is written in Python and takes longer
// than the kernel of a tiny call. Null where there is none, or where C refuses an object; the
// method then refuses it in words.
py::object export_in_c(py::handle object) {
  const DLExchange* exchange = exchange_of(Py_TYPE(object.ptr()));
  if (exchange == nullptr || exchange->export_without_stream == nullptr) return {};
  DLManagedVersioned* managed = nullptr;
  if (exchange->export_without_stream(object.ptr(), &managed) != 0) {
    PyErr_Clear();
    return {};
  }
  PyObject* capsule = PyCapsule_New(managed, "dltensor_versioned", free_capsule);
  if (capsule == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(capsule);
}

// Newer producers hand out the versioned capsule (which read-only NumPy arrays require); older ones
// do not know the argument. Either capsule frees itself when it was never renamed to "used". What C
// exports is ordered behind no stream, so it is asked wherever the caller orders the work; Array
// looks at the device then. Only producers on a device are told of a stream, and only they are
// asked first where they are: others might not take the argument.
py::object export_capsule(py::handle object, const Place& place, const char* name) {
  const Words& known = words();
  const bool on_device = place.device >= 0;
  if (!on_device || place.stream == -1) {
    if (py::object capsule = export_in_c(object)) return capsule;
  }
  py::object stream;
  if (on_device) {
    if (!py::hasattr(object, "__dlpack_device__")) fail_array(object, name);
    const auto [type, id] = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
    check_device({type, id}, place, name);
    stream = py::int_(place.stream);
  }
  PyObject* arguments[] = {object.ptr(), known.version.ptr(), stream.ptr()};
  PyObject* keys = (on_device ? known.keys_on_device : known.keys).ptr();
  PyObject* capsule = PyObject_VectorcallMethod(known.method.ptr(), arguments, 1, keys);
  if (capsule != nullptr) return py::reinterpret_steal<py::object>(capsule);
  py::error_already_set error;
  if (!py::hasattr(object, known.method)) fail_array(object, name);
  if (!error.matches(PyExc_TypeError)) throw error;
  py::dict plain;
  if (on_device) plain["stream"] = stream;
  return object.attr(known.method)(**plain);
}

// What the capsule holds, and whether its producer says that it must not be written.
struct Exported {
  const DLTensor& tensor;
  bool read_only;
};

Exported exported(const py::object& capsule, const char* name) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto& managed = *static_cast<const DLManagedVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned")
    );
    check(
        managed.version.major == kMajor,
        name,
        ": version ",
        managed.version.major,
        " of DLPack is not supported"
    );
    return {managed.tensor, (managed.flags & kReadOnly) != 0};
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return {*static_cast<const DLTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")), false};
  }
  throw py::type_error(
      std::string(name) + ": __dlpack__ must return a capsule that nobody has used, got " +
      std::string(py::str(py::repr(capsule)))
  );
}

void check_extent(bool fits, const char* name) {
  check(fits, name, " is larger than any memory: its shape, strides or offset are wrong");
}

// a *= b, or an error.
void multiply(int64_t& a, int64_t b, const char* name) {
  check_extent(!__builtin_mul_overflow(a, b, &a), name);
}

TensorView view_of(const DLTensor& tensor, const char* name) {
  TensorView view;
  view.dtype = to_dtype(tensor.dtype, name);
  view.ndim = tensor.ndim;
  check(
      0 <= view.ndim && view.ndim <= 4, name, " must have at most 4 dimensions, got ", tensor.ndim
  );
  check(view.ndim == 0 || tensor.shape != nullptr, name, " has no shape");
  // of the dimensions that are not 0, so that a product of some of them does not wrap either
  int64_t size = dtype_bytes(view.dtype);
  int64_t stride = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    const int64_t n = view.shape[i] = tensor.shape[i];
    check(n >= 0, name, " must not have a negative dimension, got ", n);
    view.strides[i] = tensor.strides != nullptr ? tensor.strides[i] : stride;
    multiply(size, n > 0 ? n : 1, name);
    stride *= n;
  }
  return view;
}

// Bytes from the first element of the view down to the lowest and up to the end of the highest.
struct Reach {
  int64_t below = 0, above = 0;
};

Reach reach_of(const TensorView& view, const char* name) {
  Reach reach;
  for (int i = 0; i < view.ndim; ++i) {
    int64_t step = view.strides[i];
    multiply(step, view.shape[i] - 1, name);
    int64_t& side = step < 0 ? reach.below : reach.above;
    check_extent(!__builtin_add_overflow(side, step, &side), name);
  }
  const int64_t bytes = dtype_bytes(view.dtype);
  check_extent(reach.above < INT64_MAX, name);
  reach.above += 1;
  multiply(reach.below, bytes, name);
  multiply(reach.above, bytes, name);
  return reach;
}

// Each dimension steps over all that the ones with smaller steps reach.
void check_no_element_twice(const TensorView& view, const char* name) {
  bool done[4] = {};
  int64_t reached = 0;
  for (int round = 0; round < view.ndim; ++round) {
    int next = -1;
    for (int i = 0; i < view.ndim; ++i) {
      if (done[i] || view.shape[i] <= 1) continue;
      if (next < 0 || std::abs(view.strides[i]) < std::abs(view.strides[next])) next = i;
    }
    if (next < 0) return;
    done[next] = true;
    const int64_t step = std::abs(view.strides[next]);
    check(
        step > reached,
        name,
        " is written and must not hold an element of memory twice (strides that overlap)"
    );
    reached += (view.shape[next] - 1) * step;
  }
}

}  // namespace

Array::Array(py::handle object, const char* name, Access access, const Place& place)
    : capsule_(export_capsule(object, place, name)), name_(name), access_(access) {
  const auto [tensor, read_only] = exported(capsule_, name);
  check_device(tensor.device, place, name);
  check(!(written() && read_only), name, " is written, but the array is read-only");
  view_ = view_of(tensor, name);
  auto start = reinterpret_cast<uintptr_t>(tensor.data);
  check_extent(!__builtin_add_overflow(start, tensor.byte_offset, &start), name);
  view_.data = reinterpret_cast<void*>(start);
  if (view_.size() == 0) return;
  check(tensor.data != nullptr, name, " has ", view_.size(), " elements but no memory");
  const auto bytes = static_cast<uintptr_t>(dtype_bytes(view_.dtype));
  check(start % bytes == 0, name, " must be aligned to its elements of ", bytes, " bytes");
  const Reach reach = reach_of(view_, name);
  const bool wraps = __builtin_add_overflow(start, static_cast<uintptr_t>(reach.below), &begin_) !=
                         (reach.below < 0) ||
                     __builtin_add_overflow(start, static_cast<uintptr_t>(reach.above), &end_);
  // nor has any process addresses of 64 bits
  check_extent(!wraps && end_ <= static_cast<uintptr_t>(INTPTR_MAX), name);
  if (!written()) return;
  check_no_element_twice(view_, name);
  // where the producer does not know, as torch of a file that is mapped for reading
  const bool refused = place.device == Place::kCpu && cpu::refuses_writes(begin_, end_);
  check(!refused, name, " is written, but its memory is read-only");
}

std::optional<Array> optional_array(
    py::handle object, const char* name, Access access, const Place& place
) {
  if (object.is_none()) return std::nullopt;
  return std::make_optional<Array>(object, name, access, place);
}

void fail_access(const char* name) {
  throw std::logic_error(std::string(name) + " was opened for reading and is written");
}

}  // namespace logitless::bindings
