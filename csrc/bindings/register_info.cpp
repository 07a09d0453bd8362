#include <pybind11/pybind11.h>

#include "../cpu/parallel.h"

namespace py = pybind11;

namespace logitless::bindings {

void register_info(py::module_& m) {
  m.def("default_threads", &cpu::default_threads, "Threads used when the caller names none.");
}

}  // namespace logitless::bindings
