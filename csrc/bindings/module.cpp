// Table of contents of the compiled core; each topic lives in its own register_*.cpp.
#include <pybind11/pybind11.h>

namespace logitless::bindings {
void register_cuda(pybind11::module_& m);
void register_info(pybind11::module_& m);
void register_loss(pybind11::module_& m);
void register_memory(pybind11::module_& m);
void register_rows(pybind11::module_& m);
void register_selection(pybind11::module_& m);
void register_support(pybind11::module_& m);
void register_transpose(pybind11::module_& m);
}  // namespace logitless::bindings

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace logitless::bindings;
  m.doc() = "Compiled core of logitless. Private: use the functions of the logitless package.";
  register_cuda(m);
  register_info(m);
  register_loss(m);
  register_memory(m);
  register_rows(m);
  register_selection(m);
  register_support(m);
  register_transpose(m);
}
