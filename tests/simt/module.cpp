// The kernels' bindings on the SIMT machine and nothing else of the core: a small module for the
// kernels' tests.
#include <pybind11/pybind11.h>

namespace logitless::bindings {
void register_topk_class(pybind11::module_& m);
void register_cuda_rows(pybind11::module_& m);
void register_cuda_divergence(pybind11::module_& m);
void register_cuda_divergence_entries(pybind11::module_& m);
void register_cuda_sampling(pybind11::module_& m);
void register_cuda_topk(pybind11::module_& m);
void register_cuda_sets(pybind11::module_& m);
void register_loss_params(pybind11::module_& m);
void register_cuda_tokens(pybind11::module_& m);
}  // namespace logitless::bindings

PYBIND11_MODULE(simt_rows, m) {
  // what comes first is what the next names in its signatures
  logitless::bindings::register_topk_class(m);
  logitless::bindings::register_cuda_rows(m);
  logitless::bindings::register_cuda_divergence(m);
  logitless::bindings::register_cuda_divergence_entries(m);
  logitless::bindings::register_cuda_sampling(m);
  logitless::bindings::register_cuda_topk(m);
  logitless::bindings::register_cuda_sets(m);
  logitless::bindings::register_loss_params(m);
  logitless::bindings::register_cuda_tokens(m);
}
