"""What stands beside a policy term in a token's loss, and what the control makes of it: the same
order of operations as in csrc/core/token_loss.h, by select."""

import triton
import triton.language as tl

from logitless.kernels.tokens.loss.exp import exp_of, expm1_of


@triton.jit
def _plain_kl(x, ESTIMATOR: tl.constexpr):
    if ESTIMATOR == "none":
        loss, slope = tl.zeros_like(x), tl.zeros_like(x)
    elif ESTIMATOR == "k1":
        loss, slope = x, tl.zeros_like(x) + 1
    elif ESTIMATOR == "k2":
        loss, slope = 0.5 * x * x, x
    elif ESTIMATOR == "abs":
        loss, slope = tl.abs(x), (x > 0).to(tl.float64) - (x < 0).to(tl.float64)
    else:
        surplus = expm1_of(-x)
        loss, slope = surplus + x, -surplus
        if ESTIMATOR == "low_var":
            held = (tl.abs(x) > 20) | (loss > 10)
            loss, slope = tl.where(held, 10.0, loss), tl.where(held, 0.0, slope)
        else:
            tl.static_assert(ESTIMATOR == "k3")
    return loss, slope


@triton.jit
def kl_term(
    x, d, ESTIMATOR: tl.constexpr, STRAIGHT_THROUGH: tl.constexpr, WEIGHT: tl.constexpr
):  # fmt: skip
    # Of x = logp - reference and d = logp - old, without its coefficient.
    loss, slope = _plain_kl(x, ESTIMATOR)
    if STRAIGHT_THROUGH:
        slope = x
    if WEIGHT == "score":
        slope = slope + loss
    if WEIGHT == "ratio":
        ratio = exp_of(d)
        slope = ratio * (slope + loss)
        loss = ratio * loss
    return loss, slope


@triton.jit
def controlled(
    loss, slope, advantage, selected, away, signs, coefficient,
    CONTROL: tl.constexpr, PENALTY: tl.constexpr, STRAIGHT_THROUGH: tl.constexpr,
):  # fmt: skip
    # What the control makes of the policy term; `away`: as x of `kl_term`, `signs`: the factors of
    # positive and negative advantages, `coefficient`: of the penalty.
    sign = tl.where(advantage > 0, signs[0], tl.where(advantage < 0, signs[1], 1.0))
    loss, slope = tl.where(sign == 0, 0.0, sign * loss), tl.where(sign == 0, 0.0, sign * slope)
    if CONTROL == "drop_selected":
        loss, slope = tl.where(selected, 0.0, loss), tl.where(selected, 0.0, slope)
    elif CONTROL == "keep_selected":
        loss, slope = tl.where(selected, loss, 0.0), tl.where(selected, slope, 0.0)
    elif CONTROL == "penalise_selected":
        # no penalty, even where the estimate is infinite
        penalty = tl.where(selected, coefficient, 0.0)
        extra, extra_slope = kl_term(away, away, PENALTY, STRAIGHT_THROUGH, "none")
        loss = tl.where(penalty == 0, loss, loss + penalty * extra)
        slope = tl.where(penalty == 0, slope, slope + penalty * extra_slope)
    else:
        tl.static_assert(CONTROL == "none")
    return loss, slope


@triton.jit
def entropy_term(entropy, coefficient, target, HAS_TARGET: tl.constexpr):
    if HAS_TARGET:
        gap = target - entropy
        gap = tl.where(gap < 0, 0.0, gap)
        slope = -coefficient * gap / target
        loss = -0.5 * slope * gap
    else:
        slope = tl.zeros_like(entropy) - coefficient
        loss = -coefficient * entropy
    return loss, slope


@triton.jit
def times(coefficient, x):
    # 0 where that is 0 times what may be infinite.
    return tl.where(coefficient == 0, 0.0, coefficient * x)
