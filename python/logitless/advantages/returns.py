"""Returns and generalised advantages over the tokens of answers, without a loop over tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from logitless.advantages.arguments import INTEGERS, TokenRows, demand, token_rows
from logitless.advantages.arrays import arrays_of
from logitless.inputs.arrays import check_dtype, framework, shape_of
from logitless.inputs.checks import positive, require, shown
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Float64s
from logitless.inputs.weights import FLOATS


class GAE(NamedTuple):
    """[B, T], 0 outside the mask."""

    advantages: Any
    # advantages + values, what a critic learns
    returns: Any


@public
def returns(
    rewards: Array,  # [B, T]
    mask: Array,  # bool [B, T]
    *,
    gamma: float = 1.0,
) -> Array:
    """The discounted sum of the rewards from a token on. In plain code, of one answer's valid
    tokens:

        for t in reversed(range(n)):
            out[t] = rewards[t] + gamma * (out[t + 1] if t + 1 < n else 0)

    Tokens outside the mask, at the end or in the middle (the words of a tool), are skipped: they
    discount nothing, and get 0. The result is [B, T]: float64 where the rewards are, else float32,
    computed in float64. gamma lies in [0, 1]. Raises ValueError for shapes that differ and rewards
    that are not finite; TypeError for dtypes.
    """
    require("gamma", gamma, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
    rows = token_rows("returns", mask, rewards=rewards)
    return rows.result(discounted(rows, gamma))


@public
def gae(
    rewards: Array,  # [B, T]
    values: Array,  # [B, T], of the state before each token
    mask: Array,  # bool [B, T]
    *,
    gamma: float = 1.0,
    lam: float | Array = 0.95,  # a number, or [B]
) -> GAE:
    """Generalised advantage estimation, and the returns for the critic. In plain code, of one
    answer's valid tokens, `values` and `out` 0 beyond the last:

        for t in reversed(range(n)):
            delta = rewards[t] + gamma * values[t + 1] - values[t]
            out[t] = delta + gamma * lam * out[t + 1]
        advantages, returns = out, out + values

    Tokens outside the mask are skipped. The advantages are not whitened: `whiten` does that. lam is
    a number in [0, 1] or one per answer, as length_adaptive_lambda gives; a second call with lam=1
    gives the returns of a decoupled critic. Result, dtypes and errors as in `returns`.
    Paper: arXiv:1506.02438.
    """
    require("gamma", gamma, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
    rows = token_rows("gae", mask, rewards=rewards, values=values)
    xp = rows.xp
    reward, value = rows.values
    decay: Any = _lambda(lam, rows)
    following = xp.later(carried(xp, value, xp.where(rows.mask, 0.0, 1.0)), 1)
    delta = xp.where(rows.mask, reward + gamma * following - value, 0.0)
    advantages = carried(xp, delta, xp.where(rows.mask, gamma * decay + 0 * value, 1.0))
    return GAE(rows.result(advantages), rows.result(advantages + value))


@public
def length_adaptive_lambda(
    lengths: Array,  # int64 or int32 [B]
    *,
    alpha: float = 0.05,
) -> Array:  # float64 [B]
    """gae's lam for each answer: the longer it is, the nearer to 1. In plain code:

        (1 - 1 / (alpha * lengths)).clip(min=0)

    Raises ValueError for lengths < 1, or an alpha that is not > 0. Paper: arXiv:2504.05118.
    """
    positive("alpha", alpha)
    framework("length_adaptive_lambda", lengths=lengths)
    check_dtype("length_adaptive_lambda", "lengths", lengths, *INTEGERS)
    xp = arrays_of(lengths)
    demand(xp, "lengths", lengths, lengths >= 1, ">= 1")
    return xp.maximum(1.0 - 1.0 / (alpha * xp.cast(lengths, xp.float64)), 0.0)


def discounted(rows: TokenRows, gamma: float) -> Float64s:
    """Of the first values of the rows; outside the mask whatever comes after."""
    return carried(rows.xp, rows.values[0], rows.xp.where(rows.mask, gamma, 1.0))


def carried(xp: Any, x: Float64s, factor: Float64s) -> Float64s:
    """y[:, t] = x[:, t] + factor[:, t] * y[:, t + 1], y being 0 beyond the end.

    Each round turns t -> t + step into t -> t + 2 step: log2(T) of them instead of T.
    """
    step, width = 1, x.shape[1]
    while step < width:
        x = x + factor * xp.later(x, step)
        factor = factor * xp.later(factor, step)
        step *= 2
    return x


def _lambda(lam: float | Array, rows: TokenRows) -> Any:
    if not hasattr(lam, "ndim") or lam.ndim == 0:
        return require("lam", lam, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
    framework("gae", mask=rows.mask, lam=lam)
    if shape_of(lam) != shape_of(rows.mask)[:1]:
        raise ValueError(
            f"lam must be a number or [B] = {list(shape_of(rows.mask)[:1])}, got {shown(lam)}"
        )
    check_dtype("gae", "lam", lam, *FLOATS)
    held = rows.xp.cast(lam, rows.xp.float64)
    demand(rows.xp, "lam", held, (held >= 0) & (held <= 1), "in [0, 1]")
    return held[:, None]
