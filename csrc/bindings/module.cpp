// Table of contents of the compiled core: a submodule per topic, a file per submodule.
#include <pybind11/pybind11.h>

namespace logitless::bindings {
void register_runtime(pybind11::module_& m);
void register_topk_class(pybind11::module_& m);
void register_rows(pybind11::module_& m);
void register_cuda_rows(pybind11::module_& m);
void register_topk(pybind11::module_& m);
void register_cuda_topk(pybind11::module_& m);
void register_sets(pybind11::module_& m);
void register_cuda_sets(pybind11::module_& m);
void register_sampling(pybind11::module_& m);
void register_cuda_sampling(pybind11::module_& m);
void register_divergence(pybind11::module_& m);
void register_cuda_divergence(pybind11::module_& m);
void register_divergence_entries(pybind11::module_& m);
void register_cuda_divergence_entries(pybind11::module_& m);
void register_loss_params(pybind11::module_& m);
void register_tokens(pybind11::module_& m);
void register_cuda_tokens(pybind11::module_& m);
void register_selection(pybind11::module_& m);
}  // namespace logitless::bindings

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace logitless::bindings;
  m.doc() = "Compiled core of logitless. Private: use the functions of the logitless package.";
  auto runtime = m.def_submodule("runtime", "What this build holds, memory and threads.");
  auto rows = m.def_submodule("rows", "The statistics of rows of logits, and their gradients.");
  auto topk = m.def_submodule("topk", "The largest logits of rows, and sparse rows made of them.");
  auto sets = m.def_submodule("sets", "Rows over sets of the vocabulary.");
  auto sampling = m.def_submodule("sampling", "Draws of a token per row.");
  auto divergence =
      m.def_submodule("divergence", "Rows under a student's softmax and a teacher's.");
  auto tokens = m.def_submodule("tokens", "The policy loss, and the selection of tokens.");
  register_runtime(runtime);
  // A class comes before what takes it, so that docstrings know its name.
  register_topk_class(topk);
  register_rows(rows);
  register_cuda_rows(rows);
  register_topk(topk);
  register_cuda_topk(topk);
  register_sets(sets);
  register_cuda_sets(sets);
  register_sampling(sampling);
  register_cuda_sampling(sampling);
  register_divergence(divergence);
  register_cuda_divergence(divergence);
  register_divergence_entries(divergence);
  register_cuda_divergence_entries(divergence);
  register_loss_params(tokens);
  register_tokens(tokens);
  register_cuda_tokens(tokens);
  register_selection(tokens);
}
