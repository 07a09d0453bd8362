// Large buffers for Python, handed from one call to the next.
#include <pybind11/pybind11.h>

#include "../cpu/runtime/memory.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// More than any address space has, and a page more does not wrap.
constexpr int64_t kMostBytes = int64_t{1} << 60;

// Holds a block as long as somebody looks at it.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(count_of(bytes, kMostBytes, "bytes")) {
    const py::gil_scoped_release release;
    block_ = cpu::take_memory(bytes);
  }
  // Of a gigabyte that takes milliseconds.
  ~Memory() {
    const py::gil_scoped_release release;
    cpu::give_memory(block_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  py::buffer_info buffer() const {
    return py::buffer_info(static_cast<uint8_t*>(block_.data), bytes_);
  }

 private:
  int64_t bytes_;
  cpu::Block block_;
};

}  // namespace

void register_memory(py::module_& m) {
  py::class_<Memory>(
      m, "Memory", py::buffer_protocol(), "Bytes of whatever was there, in reused memory."
  )
      .def(py::init<int64_t>(), py::arg("bytes"))
      .def_buffer(&Memory::buffer);
  m.def("spare_bytes", &cpu::spare_bytes, "Bytes that wait to be used again.");
  m.def(
      "release_memory",
      &cpu::release_memory,
      py::call_guard<py::gil_scoped_release>(),
      "Hand spare memory back; bytes that were spare."
  );
}

}  // namespace logitless::bindings
