// _core.runtime: what this build holds, memory that is used again, threads.
#include "../cuda/runtime/runtime.h"

#include <pybind11/pybind11.h>

#include "../cpu/runtime/gomp.h"
#include "../cpu/runtime/isa.h"
#include "../cpu/runtime/memory.h"
#include "../cpu/runtime/parallel.h"
#include "arrays/scalars.h"

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

void register_runtime(py::module_& m) {
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
  m.def(
      "default_threads",
      &cpu::default_threads,
      "Threads used when the caller names none: LOGITLESS_NUM_THREADS, else `otherwise`, else (0) "
      "the CPUs of this process.",
      py::arg("otherwise") = 0
  );
  m.def(
      "widest_team",
      &cpu::widest_team,
      "The most threads that worked on one loop since this was last asked; 0 without a loop."
  );
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
