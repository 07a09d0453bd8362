// Drivers of two softmaxes over sets.
#include "entries.cuh"
#include "entries.h"

namespace logitless::cuda {
namespace {

int64_t blocks_of(const PairRows& rows) { return ceil_div(rows.student.n, kEntriesWarps); }

auto kernel_of(Divergence kind) {
  switch (kind) {
    case Divergence::reverse_kl: return entries_gradient_kernel<Divergence::reverse_kl>;
    case Divergence::forward_kl: return entries_gradient_kernel<Divergence::forward_kl>;
    default: return entries_gradient_kernel<Divergence::jsd>;
  }
}

}  // namespace

void entries_forward(
    const PairRows& rows, const PairEntries& entries, PairState* state, Stream stream
) {
  const DeviceGuard guard(stream.device);
  const EntriesForwardArgs args = {rows, entries, state};
  const int64_t blocks = blocks_of(rows);
  launch("entries_forward", entries_forward_kernel, blocks, kEntriesThreads, stream, args);
}

void entries_mix(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    double beta,
    MixSums* sums,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const EntriesMixArgs args = {
      {rows, state, nullptr, Divergence::jsd, beta, false, {}, {}},
      entries,
      static_cast<float>(mix_offset(beta)),
      static_cast<float>(teacher_mix_offset(beta)),
      sums
  };
  const int64_t blocks = blocks_of(rows);
  launch("entries_mix", entries_mix_kernel, blocks, kEntriesThreads, stream, args);
}

void entries_gradient(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const Upstream& g_divergence,
    const Upstream& g_entropy,
    float* out,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const EntriesGradientArgs args = {
      {rows, state, sums, kind, beta, true, g_divergence, g_entropy}, entries, out
  };
  launch("entries_gradient", kernel_of(kind), blocks_of(rows), kEntriesThreads, stream, args);
}

}  // namespace logitless::cuda
