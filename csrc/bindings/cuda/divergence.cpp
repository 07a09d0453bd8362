// _core.divergence.CudaPair: rows under two softmaxes on a CUDA device, on the stream that each
// call names.
#include "../../cuda/divergence/divergence.h"

#include <pybind11/pybind11.h>

#include "../arrays/pair_arrays.h"
#include "noise.h"
#include "rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// pair_workspace_bytes, of any sizes.
int64_t pair_workspace_of(int64_t n, int64_t columns) {
  int64_t bytes = 0;
  const int64_t splits = columns / cuda::kPairColumns + 1;
  const int64_t of_row =
      int64_t{sizeof(cuda::PairTerms)} + splits * int64_t{sizeof(cuda::PairPartial)};
  const bool wraps = __builtin_mul_overflow(n, of_row, &bytes);
  check(!wraps, "a tile of ", n, " rows and ", columns, " columns is larger than any memory");
  return cuda::pair_workspace_bytes(n, columns);
}

class CudaPair {
 public:
  CudaPair(const CudaRows& rows, const CudaRows& teacher) : rows_(rows), teacher_(teacher) {
    check_same_rows(rows, teacher);
    const int own = device().number(), other = teacher.device().number();
    check(own == other, "teacher must be on device ", own, ", got ", other);
  }

  static int64_t workspace_bytes(int64_t n, int64_t columns) {
    return pair_workspace_of(
        count_of(n, kMostRows, "n"), count_of(columns, kMostColumns, "columns")
    );
  }

  void forward(
      py::handle logits,
      py::handle teacher_logits,
      py::handle state,
      py::handle workspace,
      int64_t start,
      bool first,
      const CudaNoise* noise,
      int64_t stream
  ) const {
    const PairArrays<CudaRows> pair(
        rows_, teacher_, logits, teacher_logits, start, CudaNoise::on(noise, device().number())
    );
    const Array states = writes(state, "state"), memory = writes(workspace, "workspace");
    auto* data = rows_.arrays().states_of<PairState>(states);
    const cuda::Workspace lent = lent_for(pair, memory);
    check_apart(rows_, teacher_, pair, states, memory, noise);
    const py::gil_scoped_release release;
    cuda::pair_forward(pair.rows, pair.tile, first, data, lent, queue(stream));
  }

  void mix(
      py::handle logits,
      py::handle teacher_logits,
      py::handle state,
      py::handle sums,
      py::handle workspace,
      double beta,
      int64_t start,
      bool first,
      const CudaNoise* noise,
      int64_t stream
  ) const {
    const PairArrays<CudaRows> pair(
        rows_, teacher_, logits, teacher_logits, start, CudaNoise::on(noise, device().number())
    );
    const Array states = reads(state, "state"), totals = writes(sums, "sums");
    const Array memory = writes(workspace, "workspace");
    const auto* data = rows_.arrays().states_of<const PairState>(states);
    auto* out = reinterpret_cast<MixSums*>(data_of<double>(totals, Dtype::f64, 2 * rows_.n()));
    beta_of(beta);
    const cuda::Workspace lent = lent_for(pair, memory);
    check_apart(rows_, teacher_, pair, states, totals, memory, noise);
    const py::gil_scoped_release release;
    cuda::pair_mix(pair.rows, pair.tile, first, data, beta, out, lent, queue(stream));
  }

  void finalize(
      py::handle state,
      py::handle entropy,
      py::handle teacher_entropy,
      py::handle reverse_kl,
      py::handle forward_kl,
      py::handle error,
      py::handle row_ids,
      int64_t stream
  ) const {
    const Array states = reads(state, "state"), flag = writes(error, "error");
    const Array own = writes(entropy, "entropy");
    const Array others = writes(teacher_entropy, "teacher_entropy");
    const Array reverse = writes(reverse_kl, "reverse_kl");
    const Array forwards = writes(forward_kl, "forward_kl");
    const auto ids = optional_array(row_ids, "row_ids", Access::read, device().place());
    for (const Array* out : {&own, &others, &reverse, &forwards}) {
      data_of<float>(*out, Dtype::f32, rows_.n());
    }
    const auto* names = data_of<const int64_t>(ids, Dtype::i64, rows_.n());
    const auto* data = rows_.arrays().states_of<const PairState>(states);
    auto* lowest = data_of<int64_t>(flag, Dtype::i64, 1);
    check_apart(rows_, teacher_, states, own, others, reverse, forwards, ids, flag);
    const PairRows both{rows_.rows(), teacher_.rows(), {}};
    const PairOutputs out{own.view(), others.view(), reverse.view(), forwards.view()};
    const py::gil_scoped_release release;
    cuda::pair_finalize(both, data, names, out, lowest, queue(stream));
  }

  void gradient(
      py::handle logits,
      py::handle teacher_logits,
      py::handle state,
      py::handle gradient,
      py::handle workspace,
      const std::string& kind,
      double beta,
      py::handle sums,
      py::handle g_divergence,
      py::handle g_entropy,
      int64_t start,
      const CudaNoise* noise,
      int64_t stream
  ) const {
    const PairArrays<CudaRows> pair(
        rows_, teacher_, logits, teacher_logits, start, CudaNoise::on(noise, device().number())
    );
    const int64_t n = rows_.n();
    const Array states = reads(state, "state"), out = writes(gradient, "gradient");
    const Array memory = writes(workspace, "workspace");
    const PairUpstream of(kind, beta, sums, g_divergence, g_entropy, n, device().place());
    const auto* data = rows_.arrays().states_of<const PairState>(states);
    const cuda::Upstream gd = upstream_of(of.g_divergence, n), ge = upstream_of(of.g_entropy, n);
    const cuda::Workspace lent = lent_for(pair, memory);
    const Array& others = pair.teacher_logits;
    check_apart(rows_, teacher_, others, states, of, memory, out, noise);
    check_apart(pair.logits, memory);
    if (!same_elements(pair.logits.view(), out.view())) check_apart(pair.logits, out);
    const py::gil_scoped_release release;
    cuda::pair_gradient(
        pair.rows, pair.tile, data, of.sums, of.kind, beta, gd, ge, out.view(), lent, queue(stream)
    );
  }

 private:
  const CudaDevice& device() const { return rows_.device(); }
  cuda::Stream queue(int64_t stream) const { return device().queue(stream); }
  Array reads(py::handle object, const char* name) const {
    return Array(object, name, Access::read, device().place());
  }
  Array writes(py::handle object, const char* name) const {
    return Array(object, name, Access::write, device().place());
  }
  // Of a tile that of_tile has checked.
  cuda::Workspace lent_for(const PairArrays<CudaRows>& pair, const Array& memory) const {
    check(memory->contiguous(), "workspace must be contiguous");
    if (pair.logits->ndim > 0) pair_workspace_of(rows_.n(), pair.tile.columns());
    return {memory->data, memory->size() * dtype_bytes(memory->dtype)};
  }

  const CudaRows& rows_;
  const CudaRows& teacher_;
};

}  // namespace

void register_cuda_divergence(py::module_& m) {
  const auto none = py::none();
  py::class_<CudaNoise>(m, "CudaNoise", "Noise of which row_ids and sizes are on a CUDA device.")
      .def(
          py::init<py::handle, py::handle, uint64_t, uint64_t, int64_t, int>(),
          py::arg("row_ids"),
          py::arg("sizes"),
          py::kw_only(),
          py::arg("seed"),
          py::arg("step"),
          py::arg("start") = 0,
          py::arg("device") = 0
      );
  py::class_<CudaPair>(m, "CudaPair", "A student's rows beside a teacher's on a CUDA device.")
      .def(
          py::init<const CudaRows&, const CudaRows&>(),
          py::keep_alive<1, 2>(),
          py::keep_alive<1, 3>(),
          py::arg("rows"),
          py::arg("teacher")
      )
      .def_static(
          "workspace_bytes",
          &CudaPair::workspace_bytes,
          "Bytes of workspace that a call on a tile needs.",
          py::arg("n"),
          py::arg("columns")
      )
      .def(
          "forward",
          &CudaPair::forward,
          "Take a tile of logits of each, [n, width], into state [n, 8].",
          py::arg("logits"),
          py::arg("teacher_logits"),
          py::arg("state"),
          py::arg("workspace"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("first") = true,
          py::arg("noise") = none,
          py::arg("stream") = 0
      )
      .def(
          "mix",
          &CudaPair::mix,
          "Add a tile to sums [n, 2]: the divergences of student and teacher from their mix.",
          py::arg("logits"),
          py::arg("teacher_logits"),
          py::arg("state"),
          py::arg("sums"),
          py::arg("workspace"),
          py::kw_only(),
          py::arg("beta"),
          py::arg("start") = 0,
          py::arg("first") = true,
          py::arg("noise") = none,
          py::arg("stream") = 0
      )
      .def(
          "finalize",
          &CudaPair::finalize,
          "Turn state [n, 8] into entropies and both KL. A bad row is NaN and lowers error to "
          "row_id "
          "* 8 + kind.",
          py::arg("state"),
          py::kw_only(),
          py::arg("entropy"),
          py::arg("teacher_entropy"),
          py::arg("reverse_kl"),
          py::arg("forward_kl"),
          py::arg("error"),
          py::arg("row_ids") = none,
          py::arg("stream") = 0
      )
      .def(
          "gradient",
          &CudaPair::gradient,
          "Write d(logits) of a tile of the student's into gradient, which may be that tile.",
          py::arg("logits"),
          py::arg("teacher_logits"),
          py::arg("state"),
          py::arg("gradient"),
          py::arg("workspace"),
          py::kw_only(),
          py::arg("kind"),
          py::arg("beta") = 0.5,
          py::arg("sums") = none,
          py::arg("g_divergence") = none,
          py::arg("g_entropy") = none,
          py::arg("start") = 0,
          py::arg("noise") = none,
          py::arg("stream") = 0
      );
}

}  // namespace logitless::bindings
