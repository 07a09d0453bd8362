// The state of a row under two softmaxes, a student's and a teacher's, and how its parts merge.
//
// With x = (y - m) * scale of one and u of the other: s0 = sum e^x, s1 = sum x e^x and
// gap = sum e^x (x - u). Gaps are small where the two agree, so that a divergence loses no digits
// to the entropies.
// A column that a softmax gives no mass adds nothing to its sums, whatever the other holds there;
// one with mass where the other has none makes its gap infinite.
#pragma once

#include <cmath>

#include "noise.h"
#include "rows.h"

namespace logitless {

constexpr double kBitsPerNat = 1.4426950408889634074, kNatsPerBit = 0.69314718055994530942;

// The rows of a call as the student sees them and as the teacher does. Mask and threads are the
// student's.
struct PairRows {
  Rows student, teacher;
  // Added to the teacher's z.
  PairNoise noise;
};

// A tile of logits of each, the same columns of the same rows, from vocabulary id `start` on.
struct PairTile {
  TensorView student, teacher;
  int64_t start;

  int64_t columns() const { return student.shape[student.ndim - 1]; }
};

// Of tiles that check_tile has seen.
inline void check_same_columns(const PairTile& tile) {
  const int64_t got = tile.teacher.shape[tile.teacher.ndim - 1];
  check(
      got == tile.columns(),
      "teacher_logits must have the columns of logits, ",
      tile.columns(),
      ", got ",
      got
  );
}

// [n] each, or data == null
struct PairOutputs {
  TensorView entropy, teacher_entropy, reverse_kl, forward_kl;
};

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

// What is wrong with a row as one side sees it.
LOGITLESS_HD inline RowError side_error(const PairSide& side) {
  Moments moments;
  moments.m = side.m;
  moments.s0 = side.s0;
  return row_error(moments, 0, 1);
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

// What is known of a row once all its columns were seen: maxima, and log2 of the sums beside them.
struct PairNormals {
  double m, teacher_m;
  double log2_s0, teacher_log2_s0;
};

LOGITLESS_HD inline PairNormals pair_normals(const PairState& a) {
  return {a.student.m, a.teacher.m, log2(a.student.s0), log2(a.teacher.s0)};
}

// What is below serves columns, so every instruction set has its own: static.

// What makes log2 of (1 - beta) p over beta q of x - u in bits.
LOGITLESS_HD static inline double pair_odds(const PairNormals& of, double beta) {
  return of.teacher_log2_s0 - of.log2_s0 + (log1p(-beta) - log(beta)) * kBitsPerNat;
}

// What makes log2(p / mix) of log2 of (1 - beta) p over mix; and likewise of q and beta.
LOGITLESS_HD static inline double mix_offset(double beta) { return -log1p(-beta) * kBitsPerNat; }
LOGITLESS_HD static inline double teacher_mix_offset(double beta) {
  return -log(beta) * kBitsPerNat;
}

// Coefficients of e^x, x e^x, w e^x and e^u in d(y), with x, u and w in bits and w without what is
// the same in all columns: x - u, or log2 of (1 - beta) p over mix.
struct PairCoefficients {
  double constant, linear, gap, other;
};

LOGITLESS_HD static inline PairCoefficients pair_coefficients(
    double scale, const PairNormals& of, const PairGradient& g, Divergence kind, double beta
) {
  const double s = scale * exp2(-of.log2_s0), t = scale * exp2(-of.teacher_log2_s0);
  const double shift = kind == Divergence::jsd ? mix_offset(beta) : of.teacher_log2_s0 - of.log2_s0;
  const double constant = g.a + kNatsPerBit * ((g.c != 0 ? g.c * shift : 0) - g.b * of.log2_s0);
  return {s * constant, s * g.b * kNatsPerBit, s * g.c * kNatsPerBit, t * g.t};
}

// log2(1 + e) of e in [0, 1]: 2 atanh(e / (2 + e)), a series in at most 1/9. V is T or a vector.
template <typename T, typename V>
LOGITLESS_HD static inline V log2_1p(V e) {
  constexpr int kTerms = sizeof(T) == 4 ? 7 : 17;
  const V s = e / (e + T(2));
  const V square = s * s;
  V series = V{} + T(1.0 / (2 * kTerms - 1));
  for (int k = kTerms - 2; k >= 0; --k) series = series * square + T(1.0 / (2 * k + 1));
  return s * series * T(2 * kBitsPerNat);
}

}  // namespace logitless
