#include <pybind11/pybind11.h>

#include "../cpu/parallel.h"
#include "../cpu/rows.h"

namespace py = pybind11;

namespace logitless::bindings {

void register_info(py::module_& m) {
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["isa"] = cpu::row_kernels().isa;
        info["isas"] = py::str(cpu::supported_isas()).attr("split")(",");
        info["threads"] = cpu::default_threads();
        info["compiler"] = __VERSION__;
        info["cuda"] = false;
        return info;
      },
      "What this build holds and what this CPU runs."
  );
  m.def("default_threads", &cpu::default_threads, "Threads used when the caller names none.");
}

}  // namespace logitless::bindings
