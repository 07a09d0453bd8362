#include "dlpack.h"

#include <string>

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

// Newer producers hand out the versioned capsule (which read-only NumPy arrays require); older ones
// do not know the argument. Either capsule frees itself when it was never renamed to "used". Only
// producers on a device are told of a stream, and only they are asked first where they are: others
// might not take the argument.
py::object export_capsule(py::handle object, const Place& place, const char* name) {
  py::dict arguments;
  if (place.device >= 0) {
    const auto [type, id] = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
    check_device({type, id}, place, name);
    arguments["stream"] = place.stream;
  }
  py::object method = object.attr("__dlpack__");
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 0), **arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**arguments);
}

}  // namespace

Array::Array(py::handle object, const char* name, const Place& place) {
  if (!py::hasattr(object, "__dlpack__")) {
    throw py::type_error(
        std::string(name) +
        " must be an array with __dlpack__ (a torch tensor or a NumPy array), got " +
        std::string(py::str(py::type::of(object).attr("__name__")))
    );
  }
  capsule_ = export_capsule(object, place, name);
  const DLTensor* tensor = nullptr;
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    tensor = &static_cast<DLManagedVersioned*>(
                  PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned")
    )
                  ->tensor;
  } else {
    tensor = static_cast<DLTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  }
  check(tensor != nullptr && tensor->ndim <= 4, name, " must have at most 4 dimensions");
  check_device(tensor->device, place, name);
  view_.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  view_.dtype = to_dtype(tensor->dtype, name);
  view_.ndim = tensor->ndim;
  int64_t stride = 1;
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    view_.shape[i] = tensor->shape[i];
    view_.strides[i] = tensor->strides != nullptr ? tensor->strides[i] : stride;
    stride *= tensor->shape[i];
  }
}

std::optional<Array> optional_array(py::handle object, const char* name, const Place& place) {
  if (object.is_none()) return std::nullopt;
  return std::make_optional<Array>(object, name, place);
}

}  // namespace logitless::bindings
