// Draws of a token per row on a CUDA device, on the caller's stream: the functions of
// csrc/cpu/sampling, with the same random numbers. They allocate nothing, wait for nothing and may
// be captured in a graph. Built without CUDA, absent.cpp defines the same symbols.
#pragma once

#include "../../core/sampling.h"
#include "../runtime/runtime.h"

namespace logitless::cuda {

// The largest y of a block of the vocabulary, and the sum of e^((y - m) scale) over it.
struct alignas(16) BlockSum {
  double m, s0;
};
static_assert(sizeof(BlockSum) == 16, "a workspace is measured in it");

// Enough for a tile of n rows.
inline int64_t sampling_workspace_bytes(int64_t n, int64_t columns) {
  return n * ((columns + kBlock - 1) / kBlock) * static_cast<int64_t>(sizeof(BlockSum));
}

struct SamplingWorkspace {
  void* data;
  int64_t bytes;
};

// Draws among the tile's blocks and those that `best` has seen: with `first`, none. Where a block
// of the tile is the best, the y of its token goes into state.target; nothing else of the state is
// touched.
void rows_sample(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const SampleKey& key,
    RowState* state,
    SampleState* best,
    const SamplingWorkspace& workspace,
    Stream stream
);

// What is drawn of each row, and from which set.
struct TruncatedDraw {
  int64_t* token;           // [n]
  int64_t* kept;            // [n] the size of the set
  float* kept_logp;         // [n] the token's log-prob within it
  uint8_t* bits = nullptr;  // [n, ceil(V / 8)] or null: the set, a bit an id
};

// Draws from whole rows of logits [n, V]. A row without a meaning draws the token 0 of an empty set
// with the log-prob NaN; of the others the y of the token goes into state.target.
void draw_from_rows(
    const Rows& rows,
    const TensorView& logits,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out,
    const SamplingWorkspace& workspace,
    Stream stream
);

}  // namespace logitless::cuda
