"""The loss of each token with its derivatives in closed form, and what its sums are made of.

Replaces csrc/core/token_loss.h over the valid tokens, which have a share of the batch that is not
0 or, where all have the same, are inside the mask:

    g_logp, g_entropy = d loss / d logp, d loss / d entropy           # 0 of the others
    parts[:, program] = sums of loss, policy, kl, ... over its tokens

A token of a value, or of a result, that is not finite is flagged, and its coefficients are NaN.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF
from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.loss.exp import exp_of
from logitless.kernels.tokens.loss.loss_terms import controlled, entropy_term, kl_term, times
from logitless.kernels.tokens.loss.surrogates import dual_clipped, ratio_clipped, surrogate_term
from logitless.kernels.tokens.shared import (
    flag_tokens,
    is_finite,
    number_of,
    token_of,
    truths_of,
    values_of,
)

LANES = 256
NUM_WARPS = 4
# Sums of each program.
ADDED = 10
# What float32 rounds to infinity, and all above it.
OVERFLOW = float.fromhex("0x1.ffffffp127")


@triton.jit
def _bounds(
    log_low_ptr, log_high_ptr, log_low, log_high, ratio_low, ratio_high, log_dual, ratio_dual,
    CHOSEN_LOW: tl.constexpr, CHOSEN_HIGH: tl.constexpr,
):  # fmt: skip
    # Of the loss, or those that the batch chose, of which the logs are known.
    log_low, log_high = number_of(log_low_ptr, log_low), number_of(log_high_ptr, log_high)
    low, high = number_of(None, ratio_low), number_of(None, ratio_high)
    if CHOSEN_LOW:
        low = exp_of(log_low)
    if CHOSEN_HIGH:
        high = exp_of(log_high)
    return log_low, log_high, low, high, number_of(None, log_dual), number_of(None, ratio_dual)


@triton.jit
def _away(logp, reference_ptr, token, valid):
    # 0 where there is no such reference.
    away = tl.zeros_like(logp)
    if reference_ptr is not None:
        away = logp - values_of(reference_ptr, token, valid)
    return away


@triton.jit
def _add(parts_ptr, programs, which: tl.constexpr, x, valid):
    at = which * programs.to(tl.int64) + tl.program_id(0)
    tl.store(parts_ptr + at, tl.sum(tl.where(valid, x, 0.0), 0))


@triton.jit
def _write(out_ptr, token, x, valid, inside):
    if out_ptr is not None:
        x = tl.where(valid, x, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + token, x, mask=inside)


@triton.jit(do_not_specialize=["n"])
def token_loss_kernel(
    g_logp_ptr,  # [n] as logp, out
    g_entropy_ptr,  # the same, or None
    g_policy_ptr,  # [n] float64, out: the policy term's part of g_logp, then apart; or None
    parts_ptr,  # [ADDED, programs] float64, out
    flag_ptr,  # [1] int64
    logp_ptr,  # [n] float32 or float64, and so the next
    advantages_ptr,
    mask_ptr,  # [n] bool
    weights_ptr,  # [n] float64; None: `weight` holds for all
    old_logp_ptr,  # [n] as logp or None, and so the next three
    entropy_ptr,
    kl_logp_ptr,
    penalty_logp_ptr,
    selected_ptr,  # [n] bool or None
    log_ratio_ptr,  # [n] float64 or None, and so the next three
    factor_ptr,
    precomputed_loss_ptr,
    precomputed_slope_ptr,
    weight_ptr,  # float64 without dimensions; None: the host's number, and so the next five
    mean_advantage_ptr,
    mean_logp_ptr,
    entropy_coefficient_ptr,
    log_low_ptr,
    log_high_ptr,
    n,
    weight: tl.float64,
    mean_advantage: tl.float64,
    mean_logp: tl.float64,
    entropy_coefficient: tl.float64,
    log_low: tl.float64,
    log_high: tl.float64,
    grad_scale: tl.float64,
    kl_coefficient: tl.float64,
    penalty_coefficient: tl.float64,
    ratio_low: tl.float64,
    ratio_high: tl.float64,
    log_dual: tl.float64,
    ratio_dual: tl.float64,
    positive: tl.float64,
    negative: tl.float64,
    entropy_target: tl.float64,
    constant0: tl.float64,
    constant1: tl.float64,
    constant2: tl.float64,
    constant3: tl.float64,
    SURROGATE: tl.constexpr,
    KIND: tl.constexpr,
    CONTROL: tl.constexpr,
    PENALTY: tl.constexpr,
    PENALTY_STRAIGHT_THROUGH: tl.constexpr,
    KL: tl.constexpr,
    KL_STRAIGHT_THROUGH: tl.constexpr,
    KL_WEIGHT: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    CHOSEN_LOW: tl.constexpr,
    CHOSEN_HIGH: tl.constexpr,
    LIMIT: tl.constexpr,
    LANES: tl.constexpr,
):
    token, inside = token_of(n, LANES)
    if weights_ptr is not None:
        weight = values_of(weights_ptr, token, inside)
        valid = weight != 0
    else:
        weight = number_of(weight_ptr, weight)
        valid = truths_of(mask_ptr, token, inside)
    logp = values_of(logp_ptr, token, valid)
    advantage = values_of(advantages_ptr, token, valid)
    entropy = values_of(entropy_ptr, token, valid)
    own = _away(logp, old_logp_ptr, token, valid)
    u = own
    if log_ratio_ptr is not None:
        u = values_of(log_ratio_ptr, token, valid)
    x = _away(logp, kl_logp_ptr, token, valid)
    selected, away = token < 0, tl.zeros_like(logp)
    if selected_ptr is not None:
        selected = truths_of(selected_ptr, token, valid)
        if CONTROL == "penalise_selected":
            away = tl.where(selected, _away(logp, penalty_logp_ptr, token, valid), 0.0)
    good = is_finite(logp) & is_finite(advantage) & is_finite(entropy) & is_finite(own)
    good = good & is_finite(u) & is_finite(x) & is_finite(away)

    bounds = _bounds(
        log_low_ptr, log_high_ptr, log_low, log_high, ratio_low, ratio_high, log_dual, ratio_dual,
        CHOSEN_LOW, CHOSEN_HIGH,
    )  # fmt: skip
    seen = u
    if SURROGATE == "precomputed":
        # the geometric mean clips each token's own ratio
        seen = own
        policy = values_of(precomputed_loss_ptr, token, valid)
        slope = values_of(precomputed_slope_ptr, token, valid)
    else:
        constants = (
            number_of(None, constant0),
            number_of(None, constant1),
            number_of(None, constant2),
            number_of(None, constant3),
        )
        given = (u, exp_of(u), advantage, logp)
        policy, slope = surrogate_term(given, bounds, constants, SURROGATE, KIND)
    signs = (number_of(None, positive), number_of(None, negative))
    policy, slope = controlled(
        policy, slope, advantage, selected, away, signs, number_of(None, penalty_coefficient),
        CONTROL, PENALTY, PENALTY_STRAIGHT_THROUGH,
    )  # fmt: skip
    if factor_ptr is not None:
        factor = values_of(factor_ptr, token, valid)
        good = good & is_finite(factor)
        policy = times(factor, policy)
        slope = times(factor, slope)
    kl, kl_slope = kl_term(x, own, KL, KL_STRAIGHT_THROUGH, KL_WEIGHT)
    coefficient = number_of(entropy_coefficient_ptr, entropy_coefficient)
    target = number_of(None, entropy_target)
    bonus, g_entropy = entropy_term(entropy, coefficient, target, HAS_TARGET)

    scaled = number_of(None, grad_scale) * weight
    kl_coefficient = number_of(None, kl_coefficient)
    slope = scaled * slope
    kl_slope = times(scaled * kl_coefficient, kl_slope)
    loss = scaled * policy + scaled * (times(kl_coefficient, kl) + bonus)
    g_logp = slope + kl_slope
    if g_policy_ptr is not None:
        g_logp = kl_slope
    g_entropy = scaled * g_entropy
    held = (tl.abs(g_logp) < LIMIT) & (tl.abs(g_entropy) < LIMIT) & (tl.abs(loss) < LIMIT)
    flag_tokens(flag_ptr, token, valid & ((good & held & is_finite(slope)) == 0))
    none = tl.where(good, 0.0, float("nan"))
    _write(g_logp_ptr, token, g_logp + none, valid, inside)
    _write(g_entropy_ptr, token, g_entropy + none, valid, inside)
    _write(g_policy_ptr, token, slope + none, valid, inside)

    programs = tl.num_programs(0)
    a = advantage - number_of(mean_advantage_ptr, mean_advantage)
    b = logp - number_of(mean_logp_ptr, mean_logp)
    _add(parts_ptr, programs, 0, loss + none, valid)
    _add(parts_ptr, programs, 1, weight * policy, valid)
    _add(parts_ptr, programs, 2, weight * kl, valid)
    _add(parts_ptr, programs, 3, ratio_clipped(seen, advantage, bounds).to(tl.float64), valid)
    _add(parts_ptr, programs, 4, dual_clipped(seen, advantage, bounds).to(tl.float64), valid)
    _add(parts_ptr, programs, 5, selected.to(tl.float64), valid)
    _add(parts_ptr, programs, 6, -own, valid)
    _add(parts_ptr, programs, 7, entropy, valid)
    _add(parts_ptr, programs, 8, a * b, valid)
    _add(parts_ptr, programs, 9, valid.to(tl.float64), valid)


def programs_of(n: int) -> int:
    """How many have a part in the sums."""
    return -(-n // LANES)


def _number(x: Any) -> tuple[Tensor | None, float]:
    """Where it is on the device, or the host's."""
    return (x, 0.0) if isinstance(x, Tensor) else (None, 0.0 if x is None else float(x))


def token_loss(
    tokens: Any,  # logp, advantages, mask and entropy of the tokens
    params: Any,  # what never changes about the loss, its choices by name
    terms: Any,  # arrays of the call, None where it has no such part, and its numbers
    *,
    g_logp: Tensor,  # [n] as logp, out
    g_entropy: Tensor | None,  # the same, or None
    g_policy: Tensor | None,  # [n] float64, out, or None
    parts: Tensor,  # [ADDED, programs_of(n)] float64, out
    flag: Tensor,  # [1] int64
) -> None:
    """Write the coefficients and the parts of the sums: backends/token_kernels/protocol.py."""
    t, p, n = terms, params, len(tokens.logp)
    if n == 0:
        return
    each = isinstance(t.weights, Tensor) and t.weights.ndim > 0
    low, high = (
        bound if chosen is None else chosen
        for chosen, bound in ((t.log_low, p.log_low), (t.log_high, p.log_high))
    )
    numbers = [0.0 if each else t.weights, t.mean_advantage, t.mean_logp, t.entropy_coefficient]
    pointers, values = zip(*(_number(x) for x in (*numbers, low, high)), strict=True)
    constants = (*p.constants, 0.0, 0.0, 0.0, 0.0)[:4]
    # without selected tokens a control does nothing, but for one that keeps them alone
    some = t.selected is not None or p.control == "keep_selected"
    with device_of(g_logp):
        token_loss_kernel[(programs_of(n),)](
            g_logp, g_entropy, g_policy, parts, flag,
            tokens.logp, tokens.advantages, tokens.mask, t.weights if each else None,
            t.old_logp, tokens.entropy, t.kl_logp, t.penalty_logp, t.selected, t.log_ratio,
            t.factor, t.precomputed_loss, t.precomputed_slope,
            *pointers, n, *values, t.grad_scale, t.kl_coefficient, t.penalty_coefficient,
            p.ratio_low, p.ratio_high, p.log_dual, p.ratio_dual, p.positive, p.negative,
            p.entropy_target, *constants,
            SURROGATE=p.surrogate,
            KIND=int(p.constants[3]) if p.surrogate == "trust_mask" else 0,
            CONTROL=p.control if some else "none",
            PENALTY=p.penalty_estimator,
            PENALTY_STRAIGHT_THROUGH=p.penalty_straight_through,
            KL=p.kl_estimator,
            KL_STRAIGHT_THROUGH=p.kl_straight_through,
            KL_WEIGHT=p.kl_weight,
            HAS_TARGET=p.entropy_target != 0,
            CHOSEN_LOW=t.log_low is not None,
            CHOSEN_HIGH=t.log_high is not None,
            LIMIT=OVERFLOW if g_logp.dtype == torch.float32 else INF.value,
            LANES=LANES,
            num_warps=NUM_WARPS,
            **UNFUSED,
        )  # fmt: skip
