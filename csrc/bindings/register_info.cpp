#include <pybind11/pybind11.h>

#include "../cpu/runtime/gomp.h"
#include "../cpu/runtime/isa.h"
#include "../cpu/runtime/parallel.h"
#include "../cuda/runtime/runtime.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

py::dict cuda_info() {
  const cuda::BuildInfo build = cuda::build_info();
  py::dict info;
  info["compiled"] = build.compiled;
  info["emulated"] = build.emulated;
  info["architectures"] = build.architectures;
  info["toolkit"] = build.toolkit;
  info["reason"] = build.reason;
  return info;
}

}  // namespace

void register_info(py::module_& m) {
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["isa"] = cpu::isa_name(cpu::chosen_isa());
        info["isas"] = py::str(cpu::supported_isas()).attr("split")(",");
        info["threads"] = cpu::default_threads();
        info["compiler"] = __VERSION__;
        info["cuda"] = cuda_info();
        return info;
      },
      "What this build holds and what this CPU runs."
  );
  m.def(
      "cuda_device_reason",
      &cuda::device_reason,
      "Why this build cannot run on a CUDA device; empty if it can.",
      py::arg("device")
  );
  m.def("default_threads", &cpu::default_threads, "Threads used when the caller names none.");
  m.def(
      "pool_is_lost",
      &cpu::gomp_is_lost,
      "Whether a fork has cut off the threads of torch, so that what uses them waits for ever."
  );
  m.def(
      "pool_may_be_lost",
      &cpu::gomp_may_be_lost,
      "Whether the threads of torch may have been cut off so: a fork does not tell."
  );
}

}  // namespace logitless::bindings
