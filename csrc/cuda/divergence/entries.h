// Rows under two softmaxes over sets of the vocabulary on a CUDA device: the functions of
// csrc/cpu/divergence/entries.h on the caller's stream. Built without CUDA, absent.cpp defines the
// same symbols.
#pragma once

#include "divergence.h"

namespace logitless::cuda {

// Those of row i are entries offsets[i] to offsets[i + 1] of both; they have their bias.
struct PairEntries {
  const int64_t* offsets = nullptr;  // [n + 1]
  int64_t count = 0;
  const float *student = nullptr, *teacher = nullptr;  // [count]
  const int32_t* tokens = nullptr;                     // [count], with noise
};

// States of rows over their sets.
void entries_forward(
    const PairRows& rows, const PairEntries& entries, PairState* state, Stream stream
);

// The sums of a mix, after the state of all entries is known.
void entries_mix(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    double beta,
    MixSums* sums,
    Stream stream
);

// d(values) of the student's into `out` [entries].
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
);

}  // namespace logitless::cuda
