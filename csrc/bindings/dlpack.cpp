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

// DLPack's numbers of the kinds of memory that are read here. Pinned memory is the CPU's; managed
// memory counts as the device's it is said to be on.
int to_device(DLDevice device) {
  enum Type : int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };
  if (device.type == cpu || device.type == cuda_host) return kCpu;
  return device.type == cuda || device.type == cuda_managed ? device.id : kElsewhere;
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
// do not know the argument. Either capsule frees itself when it was never renamed to "used".
py::object export_capsule(py::handle object) {
  py::object method = object.attr("__dlpack__");
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method();
}

}  // namespace

Array::Array(py::handle object, const char* name) {
  if (!py::hasattr(object, "__dlpack__")) {
    throw py::type_error(
        std::string(name) +
        " must be an array with __dlpack__ (a torch tensor or a NumPy array), got " +
        std::string(py::str(py::type::of(object).attr("__name__")))
    );
  }
  capsule_ = export_capsule(object);
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
  view_.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  view_.dtype = to_dtype(tensor->dtype, name);
  view_.ndim = tensor->ndim;
  view_.device = to_device(tensor->device);
  int64_t stride = 1;
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    view_.shape[i] = tensor->shape[i];
    view_.strides[i] = tensor->strides != nullptr ? tensor->strides[i] : stride;
    stride *= tensor->shape[i];
  }
}

std::optional<Array> optional_array(py::handle object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return std::make_optional<Array>(object, name);
}

}  // namespace logitless::bindings
