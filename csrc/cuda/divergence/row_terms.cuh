// What the columns of a row need of its state, in float32.
#pragma once

#include <cuda/runtime/device.cuh>

#include "divergence.h"

namespace logitless::cuda {

struct PairTermsArgs {
  PairRows rows;
  const PairState* state;
  const MixSums* sums;  // null: zeros
  Divergence kind;
  double beta;
  bool differentiated;  // rows without gradients are not active
  Upstream g_divergence, g_entropy;
};

LOGITLESS_DEVICE PairTerms terms_of(const PairTermsArgs& args, int64_t row) {
  const Rows& student = args.rows.student;
  const double g_divergence = args.g_divergence.at(row), g_entropy = args.g_entropy.at(row);
  const bool wanted = !args.differentiated || g_divergence != 0 || g_entropy != 0;
  PairTerms terms = {};
  if (student.active(row) && wanted) {
    const PairState state = args.state[row];
    const PairNormals normals = pair_normals(state);
    const double scale = student.scale_of(row);
    const double pre = student.transform.softcap != 0 ? student.transform.pre_scale : 1;
    const PairCoefficients c = pair_coefficients(
        scale * pre,
        normals,
        logitless::pair_gradient(
            pair_values(state),
            args.sums != nullptr ? args.sums[row] : MixSums{},
            args.kind,
            args.beta,
            g_divergence,
            g_entropy
        ),
        args.kind,
        args.beta
    );
    terms.m = static_cast<float>(normals.m);
    terms.scale = static_cast<float>(scale * kBitsPerNat);
    terms.teacher_m = static_cast<float>(normals.teacher_m);
    terms.teacher_scale = static_cast<float>(args.rows.teacher.scale_of(row) * kBitsPerNat);
    terms.odds = static_cast<float>(pair_odds(normals, args.beta));
    terms.constant = static_cast<float>(c.constant);
    terms.linear = static_cast<float>(c.linear);
    terms.gap = static_cast<float>(c.gap);
    terms.other = static_cast<float>(c.other);
    terms.active = 1.0f;
  }
  return terms;
}

}  // namespace logitless::cuda
