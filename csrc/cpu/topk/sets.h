// Rows over sets of the vocabulary: of row i there are logits of its own ids alone, which ascend.
#pragma once

#include "sparse.h"

namespace logitless::cpu {

// The logits of every entry: values = hidden[its row, :] . weight[its column, :], summed in the
// compute type. A row's are functions of that row alone.
void set_logits(
    const SparseRows& sets, const TensorView& hidden, const TensorView& weight, int threads
);

// The entries whose columns are those of a tile of logits [n, width] from column `start` on, out of
// the tile: values, rounded as the tile is.
void read_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, int threads);

// The same entries into a tile, whose other numbers become 0.
void write_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, int threads);

// States of rows over their sets. Targets and argmax are columns; what is not in a set leaves no
// target.
void set_forward(const Rows& rows, const SparseRows& sets, bool extras, RowState* state);

// d(values) from the three upstream gradients ([n] float64 or null: zero) into `out` [entries],
// which may be the values themselves.
void set_gradient(
    const Rows& rows,
    const SparseRows& sets,
    const RowState* state,
    const double* g_logp,
    const double* g_entropy,
    const double* g_lse,
    void* out
);

}  // namespace logitless::cpu
