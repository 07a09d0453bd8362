// Rows over sets of the vocabulary on a CUDA device: the functions of csrc/cpu/topk/sets.h on the
// caller's stream. They allocate nothing, wait for nothing and may be captured in a graph. Built
// without CUDA, absent.cpp defines the same symbols.
//
// Sets may be some rows of larger ones: their offsets then start and end anywhere in the entries.
#pragma once

#include "topk.h"

namespace logitless::cuda {

// values = hidden[row of the entry, :] . weight[its column, :], summed in float in an order that
// depends on the width alone. An entry whose column is no row of weight is NaN.
void set_logits(
    const SparseRows& sets, const TensorView& hidden, const TensorView& weight, Stream stream
);

// The entries that a tile of logits [n, width] from column `start` on holds, out of the tile.
void read_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, Stream stream);

// The same entries into a tile, whose other numbers stay.
void write_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, Stream stream);

// States of rows over their sets. What is not in a set leaves no target.
void set_forward(
    const Rows& rows, const SparseRows& sets, bool extras, RowState* state, Stream stream
);

// d(values) into `out` [entries].
void set_gradient(
    const Rows& rows,
    const SparseRows& sets,
    const RowState* state,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    float* out,
    Stream stream
);

}  // namespace logitless::cuda
