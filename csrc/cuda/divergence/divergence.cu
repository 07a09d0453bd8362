// Drivers of the kernels of two softmaxes: checks, then launches.
#include "divergence.h"
#include "finalize.cuh"
#include "gradient.cuh"
#include "terms.cuh"

namespace logitless::cuda {
namespace {

void check_storage(const TensorView& tile, const char* name) {
  check(
      tile.dtype == Dtype::f32 || tile.dtype == Dtype::bf16 || tile.dtype == Dtype::f16,
      name,
      " must be float32, bfloat16 or float16 on CUDA, got ",
      dtype_name(tile.dtype)
  );
}

// A checked call on a tile: its splits, and its workspace as terms of rows and partials of splits.
struct Call {
  const PairRows& rows;
  const PairTile& tile;
  Stream stream;
  int64_t n, columns, splits;
  Steps steps;
  PairTerms* terms;
  void* partials;

  Call(const PairRows& rows_, const PairTile& tile_, const Workspace& workspace, Stream stream_)
      : rows(rows_), tile(tile_), stream(stream_) {
    check_tile(rows.student, tile.student, "logits");
    check_tile(rows.teacher, tile.teacher, "teacher_logits");
    check_storage(tile.student, "logits");
    check_storage(tile.teacher, "teacher_logits");
    check_same_columns(tile);
    n = rows.student.n;
    columns = tile.columns();
    splits = ceil_div(columns, kPairColumns);
    const bool transformed =
        rows.student.transform.changes_logits() || rows.teacher.transform.changes_logits();
    steps = rows.noise.sizes != nullptr ? Steps::transform_and_noise
            : transformed               ? Steps::transform
                                        : Steps::none;
    const int64_t needed = pair_workspace_bytes(n, columns);
    const bool aligned = reinterpret_cast<uintptr_t>(workspace.data) % alignof(PairTerms) == 0;
    check(
        workspace.bytes >= needed && aligned,
        "workspace must be ",
        needed,
        " bytes aligned to ",
        alignof(PairTerms),
        ", got ",
        workspace.bytes
    );
    terms = static_cast<PairTerms*>(workspace.data);
    partials = terms + n;
  }

  int64_t warps() const { return ceil_div(n * splits, kPairWarps); }

  void make_terms(
      const PairState* state,
      const MixSums* sums,
      Divergence kind,
      double beta,
      bool differentiated,
      const Upstream& g_divergence,
      const Upstream& g_entropy
  ) const {
    const PairTermsOut args = {
        {rows, state, sums, kind, beta, differentiated, g_divergence, g_entropy}, terms
    };
    launch("terms", pair_terms_kernel, ceil_div(n, kTermsThreads), kTermsThreads, stream, args);
  }
};

auto moments_kernel_of(Steps steps) {
  switch (steps) {
    case Steps::none: return pair_moments_kernel<Steps::none>;
    case Steps::transform: return pair_moments_kernel<Steps::transform>;
    default: return pair_moments_kernel<Steps::transform_and_noise>;
  }
}

auto mix_kernel_of(Steps steps) {
  switch (steps) {
    case Steps::none: return mix_kernel<Steps::none>;
    case Steps::transform: return mix_kernel<Steps::transform>;
    default: return mix_kernel<Steps::transform_and_noise>;
  }
}

template <Divergence kKind>
auto gradient_kernel(Steps steps) {
  switch (steps) {
    case Steps::none: return pair_gradient_kernel<kKind, Steps::none>;
    case Steps::transform: return pair_gradient_kernel<kKind, Steps::transform>;
    default: return pair_gradient_kernel<kKind, Steps::transform_and_noise>;
  }
}

auto gradient_kernel_of(Divergence kind, Steps steps) {
  switch (kind) {
    case Divergence::reverse_kl: return gradient_kernel<Divergence::reverse_kl>(steps);
    case Divergence::forward_kl: return gradient_kernel<Divergence::forward_kl>(steps);
    default: return gradient_kernel<Divergence::jsd>(steps);
  }
}

}  // namespace

void pair_forward(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    PairState* state,
    const Workspace& workspace,
    Stream stream
) {
  const Call call(rows, tile, workspace, stream);
  const DeviceGuard guard(stream.device);
  auto* partials = static_cast<PairPartial*>(call.partials);
  const PairMomentsArgs moments = {rows, tile, call.columns, call.splits, partials};
  launch("moments", moments_kernel_of(call.steps), call.warps(), kPairThreads, stream, moments);
  const PairCombineArgs combine = {rows, call.splits, partials, state, first};
  const int64_t blocks = ceil_div(call.n, kPairCombineWarps);
  launch("combine", pair_combine_kernel, blocks, kPairCombineThreads, stream, combine);
}

void pair_mix(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    const PairState* state,
    double beta,
    MixSums* sums,
    const Workspace& workspace,
    Stream stream
) {
  const Call call(rows, tile, workspace, stream);
  const DeviceGuard guard(stream.device);
  call.make_terms(state, nullptr, Divergence::jsd, beta, false, {}, {});
  auto* partials = static_cast<MixPartial*>(call.partials);
  const auto own = static_cast<float>(mix_offset(beta));
  const auto others = static_cast<float>(teacher_mix_offset(beta));
  const MixArgs mix = {rows, tile, call.columns, call.splits, call.terms, own, others, partials};
  launch("mix", mix_kernel_of(call.steps), call.warps(), kPairThreads, stream, mix);
  const MixCombineArgs combine = {rows, call.splits, partials, state, sums, first};
  const int64_t blocks = ceil_div(call.n, kPairCombineWarps);
  launch("mix combine", mix_combine_kernel, blocks, kPairCombineThreads, stream, combine);
}

void pair_finalize(
    const PairRows& rows,
    const PairState* state,
    const int64_t* row_ids,
    const PairOutputs& out,
    int64_t* error,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const PairFinalizeArgs args = {rows, state, row_ids, out, error};
  const int64_t blocks = ceil_div(rows.student.n, kPairFinalizeThreads);
  launch("finalize", pair_finalize_kernel, blocks, kPairFinalizeThreads, stream, args);
}

void pair_gradient(
    const PairRows& rows,
    const PairTile& tile,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const Upstream& g_divergence,
    const Upstream& g_entropy,
    const TensorView& gradient,
    const Workspace& workspace,
    Stream stream
) {
  const Call call(rows, tile, workspace, stream);
  check_tile(rows.student, gradient, "gradient");
  check_gradient(tile.student, gradient);
  const DeviceGuard guard(stream.device);
  call.make_terms(state, sums, kind, beta, true, g_divergence, g_entropy);
  const int64_t blocks = ceil_div(call.columns, kGradientColumns);
  launch(
      "gradient",
      gradient_kernel_of(kind, call.steps),
      call.n * blocks,
      kGradientThreads,
      stream,
      PairGradientArgs{rows, tile, gradient, call.columns, blocks, call.terms}
  );
}

}  // namespace logitless::cuda
