// Rows under two softmaxes over sets of the vocabulary: of row i there are logits at its own ids
// alone, of both at the same ones.
#pragma once

#include "divergence.h"

namespace logitless::cpu {

// Those of row i are entries offsets[i] to offsets[i + 1]; they have their bias.
struct PairEntries {
  const int64_t* offsets;  // [n + 1]
  Dtype dtype;             // of both: float or double
  const void *student, *teacher;
  const int32_t* tokens = nullptr;  // of each, where there is noise

  int64_t count(int64_t n) const { return offsets[n]; }
};

// States of rows over their sets; a row without an entry has the state of no column.
void entries_forward(const PairRows& rows, const PairEntries& entries, PairState* state);

// The sums of a mix, after the state of all entries is known.
void entries_mix(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    double beta,
    MixSums* sums
);

// d(values) of the student's from the upstream gradients ([n] float64 or null: zero) into `out`.
void entries_gradient(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const double* g_divergence,
    const double* g_entropy,
    void* out
);

}  // namespace logitless::cpu
