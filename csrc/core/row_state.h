// The running state of a row, and how the states of its parts merge.
#pragma once

#include "moments.h"

namespace logitless {

// The running state of one row; 64 bytes, kept by the caller between tiles.
struct RowState {
  Moments moments;
  double target = NAN;  // y of the target once its tile was seen
  double argmax = -1;   // global vocabulary id
};
static_assert(sizeof(RowState) == 64, "Python allocates [N, 8] float64 for it");

// The state of a row from those of its two parts, `a` the earlier columns. One of them had the
// target; a tie of maxima keeps the earlier argmax.
LOGITLESS_HD inline RowState merged(const RowState& a, const RowState& b, double scale) {
  RowState r;
  r.moments = merged(a.moments, b.moments, scale);
  r.target = a.target == a.target ? a.target : b.target;
  r.argmax = b.moments.m > a.moments.m ? b.argmax : a.argmax;
  return r;
}

}  // namespace logitless
