// Rows under two softmaxes over one vocabulary: what one instruction set provides, and the drivers.
#pragma once

#include "../../core/divergence.h"
#include "../../core/noise.h"
#include "../rows/rows.h"

namespace logitless::cpu {

// Normal noise on a block of a teacher's.
struct BlockNoise {
  double size = 0;  // in y: that of z over the row's scale; 0: none
  NoiseKey key{};
  int64_t first = 0;               // token of the block's first column
  const double* values = nullptr;  // those of tokens that are no neighbours
};

// The same columns of a row of both; both in float, or both in double.
struct PairBlock {
  Dtype dtype, teacher_dtype;
  BlockInput student, teacher;
  BlockNoise noise;
};

struct PairKernels {
  void (*moments)(const PairBlock&, PairState* out);
  // Sums of p (log p - log mix) and q (log q - log mix).
  void (*mix)(const PairBlock&, const PairNormals&, double beta, MixSums* out);
  // d(raw) of the student's block, written to out (its storage type; may be the input itself).
  void (*gradient)(
      const PairBlock&, const PairNormals&, const PairGradient&, Divergence, double beta, void* out
  );
};

// Those of the instruction set that row_kernels() has.
const PairKernels& pair_kernels();

// That of the teacher's block whose first column has this number.
inline BlockNoise block_noise(const PairRows& rows, int64_t row, int64_t column) {
  const PairNoise& noise = rows.noise;
  if (noise.sizes == nullptr || noise.sizes[row] == 0) return {};
  const double size = noise.sizes[row] / rows.teacher.scale_of(row);
  return {size, noise.key(row), noise.start + column, nullptr};
}

// Folds a tile into the state; with `first` the state is started afresh. Tiles start at multiples
// of kBlock.
void pair_forward(const PairRows& rows, const PairTile& tile, bool first, PairState* state);

// Merges the states of the same rows over `count` consecutive parts of the vocabulary, [count, n].
void pair_merge(const PairRows& rows, const PairState* parts, int64_t count, PairState* state);

// Adds a tile to the sums of a mix, after the state of all columns is known.
void pair_mix(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    const PairState* state,
    double beta,
    MixSums* sums
);

// Turns states into outputs (masked rows: 0) and throws at the first bad row of either: a NaN, a
// +inf, or no finite logit. `row_ids` names rows in messages (null: their index).
void pair_finalize(
    const PairRows& rows, const PairState* state, const int64_t* row_ids, const PairOutputs& out
);

// d(logits) of the student's tile from the upstream gradients ([n] float64 or null: zero).
// `gradient` may be that tile. Rows with zero gradients are not read and get zeros.
void pair_gradient(
    const PairRows& rows,
    const PairTile& tile,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const double* g_divergence,
    const double* g_entropy,
    const TensorView& gradient
);

}  // namespace logitless::cpu
