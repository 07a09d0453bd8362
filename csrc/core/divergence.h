// The state of a row under two softmaxes, a student's and a teacher's, and how its parts merge.
//
// With x = (y - m) * scale of one and u of the other: s0 = sum e^x, s1 = sum x e^x, gap = sum e^x
// (x
// - u). Gaps are small where the two agree, so that a divergence loses no digits to the entropies.
// A column that a softmax gives no mass adds nothing to its sums, whatever the other holds there;
// one with mass where the other has none makes its gap infinite.
#pragma once

#include <cmath>

#include "config.h"

namespace logitless {

struct PairSide {
  double m = -INFINITY;
  double s0 = 0, s1 = 0, gap = 0;
};

// The running state of one row; 64 bytes, kept by the caller between tiles.
struct PairState {
  PairSide student, teacher;
};
static_assert(sizeof(PairState) == 64, "Python allocates [N, 8] float64 for it");

// Adds a part, seen from maxima larger by -own and -other, to a side.
LOGITLESS_HD inline void add_shifted(PairSide& to, const PairSide& part, double own, double other) {
  const double d = exp(own);
  to.s0 += d * part.s0;
  to.s1 += d * (part.s1 + own * part.s0);
  // by select: a gap of inf may have no mass left
  if (d * part.s0 != 0) to.gap += d * (part.gap + (own - other) * part.s0);
}

// From a part's maximum to the whole's; of a part without any mass there is none to shift by.
LOGITLESS_HD inline double shift_of(const PairSide& part, double m, double scale) {
  return part.s0 == 0 ? 0 : (part.m - m) * scale;
}

LOGITLESS_HD inline void add_part(
    PairState& to, const PairState& part, double student_scale, double teacher_scale
) {
  const double ds = shift_of(part.student, to.student.m, student_scale);
  const double dt = shift_of(part.teacher, to.teacher.m, teacher_scale);
  add_shifted(to.student, part.student, ds, dt);
  add_shifted(to.teacher, part.teacher, dt, ds);
}

LOGITLESS_HD inline PairState merged(
    const PairState& a, const PairState& b, double student_scale, double teacher_scale
) {
  PairState r;
  r.student.m = a.student.m >= b.student.m ? a.student.m : b.student.m;
  r.teacher.m = a.teacher.m >= b.teacher.m ? a.teacher.m : b.teacher.m;
  add_part(r, a, student_scale, teacher_scale);
  add_part(r, b, student_scale, teacher_scale);
  return r;
}

// In nats. A sum of rounded terms may fall below 0, which no divergence does.
struct PairValues {
  double entropy, teacher_entropy, reverse_kl, forward_kl;
};

LOGITLESS_HD inline double not_negative(double x) { return x < 0 ? 0 : x; }

LOGITLESS_HD inline PairValues pair_values(const PairState& a) {
  const double log_s = log(a.student.s0), log_t = log(a.teacher.s0);
  return {
      log_s - a.student.s1 / a.student.s0,
      log_t - a.teacher.s1 / a.teacher.s0,
      not_negative(a.student.gap / a.student.s0 + (log_t - log_s)),
      not_negative(a.teacher.gap / a.teacher.s0 + (log_s - log_t))
  };
}

enum class Divergence : int { reverse_kl, forward_kl, jsd };

// jsd: (1 - beta) KL(student || mix) + beta KL(teacher || mix), mix = (1 - beta) student + beta
// teacher. Both KL are sums of a pass that knows the normalisers.
struct MixSums {
  double student = 0, teacher = 0;
};
static_assert(sizeof(MixSums) == 16, "Python allocates [N, 2] float64 for it");

LOGITLESS_HD inline double jsd(const MixSums& sums, double beta) {
  return not_negative((1 - beta) * sums.student + beta * sums.teacher);
}

// dz = p (a + b log p + c w) + t q, with p the student's and q the teacher's probability, and w =
// log p - log q, or of jsd log p - log mix.
struct PairGradient {
  double a = 0, b = 0, c = 0, t = 0;
};

LOGITLESS_HD inline PairGradient pair_gradient(
    const PairValues& v,
    const MixSums& sums,
    Divergence kind,
    double beta,
    double g_divergence,
    double g_entropy
) {
  PairGradient g;
  g.a = -g_entropy * v.entropy;
  g.b = -g_entropy;
  if (g_divergence == 0) return g;
  if (kind == Divergence::forward_kl) {
    g.a += g_divergence;
    g.t = -g_divergence;
  } else if (kind == Divergence::reverse_kl) {
    g.a -= g_divergence * v.reverse_kl;
    g.c = g_divergence;
  } else {
    g.a -= g_divergence * (1 - beta) * sums.student;
    g.c = g_divergence * (1 - beta);
  }
  return g;
}

}  // namespace logitless
