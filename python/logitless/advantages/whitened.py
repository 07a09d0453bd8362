"""Advantages normalised over the whole batch: pass all of it."""

from __future__ import annotations

from typing import Any

from logitless.advantages.arguments import Answers, answers, demand, token_rows
from logitless.advantages.groups import Groups
from logitless.advantages.returns import discounted
from logitless.inputs.arrays import framework, shape_of
from logitless.inputs.checks import finite, positive, require, shown
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Float64s


@public
def whiten(
    values: Array,  # [B, T]
    mask: Array,  # bool [B, T]
    *,
    eps: float = 1e-8,
) -> Array:
    """Mean 0 and variance 1 over the valid tokens. In plain code:

        v = values[mask]
        (values - v.mean()) / (v.var() + eps) ** 0.5               # the unbiased variance

    The result is [B, T], 0 outside the mask: float64 where the values are, else float32, computed
    in float64; equal values become exactly 0. What lies outside the mask is not read. Raises
    ValueError for shapes that differ and values that are not finite; TypeError for dtypes.
    """
    positive("eps", eps)
    rows = token_rows("whiten", mask, values=values)
    return rows.result(_whitened_tokens(rows, rows.values[0], eps))


@public
def reinforce_plus_plus(
    rewards: Array,  # [B, T]
    mask: Array,  # bool [B, T]
    *,
    gamma: float = 1.0,
    eps: float = 1e-8,
) -> Array:
    """The discounted rewards from a token on, whitened over the tokens of the batch. In plain
    code:

        whiten(returns(rewards, mask, gamma=gamma), mask)

    Rewards are per token, a penalty for KL included if there is one. Arguments, result and errors
    as in `whiten`. Paper: arXiv:2501.03262.
    """
    require("gamma", gamma, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
    positive("eps", eps)
    rows = token_rows("reinforce_plus_plus", mask, rewards=rewards)
    return rows.result(_whitened_tokens(rows, discounted(rows, gamma), eps))


@public
def reinforce_plus_plus_baseline(
    rewards: Array,  # [B] with groups, or [G, K]
    lengths: Array | None = None,  # int64 or int32, shaped like rewards
    groups: Array | None = None,  # int64 or int32 [B]
    mask: Array | None = None,  # bool, shaped like rewards
    *,
    eps: float = 1e-8,
) -> Array:
    """dr_grpo's advantages, whitened over the tokens of the batch. In plain code:

        a = dr_grpo(rewards, groups)
        tokens = a.repeat_interleave(lengths)
        (a - tokens.mean()) / (tokens.var() + eps) ** 0.5          # the unbiased variance

    lengths=None counts each answer once instead. Arguments, result and errors as in `grpo`;
    lengths must be >= 0. Paper: arXiv:2501.03262.
    """
    positive("eps", eps)
    given = answers("reinforce_plus_plus_baseline", rewards, groups, mask, lengths=lengths)
    centered = given.groups.centered(given.values[0])
    return given.result(_whitened(given.groups, centered, _weights(given), eps))


@public
def gdpo(
    rewards: Array,  # [D, B] with groups, or [D, G, K]: D kinds of rewards
    weights: tuple[float, ...] | list[float] | None = None,  # D
    lengths: Array | None = None,  # int64 or int32, [B] or [G, K]
    groups: Array | None = None,  # int64 or int32 [B]
    mask: Array | None = None,  # bool, [B] or [G, K]
    *,
    eps: float = 1e-6,
) -> Array:
    """Each kind of reward normalised by itself as in grpo, then added up and whitened over the
    tokens of the batch. In plain code:

        a = sum(w * grpo(r, groups, eps=eps) for w, r in zip(weights, rewards))
        tokens = a.repeat_interleave(lengths)
        (a - tokens.mean()) / (tokens.var() + 1e-8) ** 0.5         # the unbiased variance

    weights=None are all 1; lengths=None counts each answer once. The result is [B] or [G, K]; what
    else there is to say is said of `grpo`. Paper: arXiv:2601.05242.
    """
    positive("eps", eps)
    framework("gdpo", {"lengths": lengths, "groups": groups, "mask": mask}, rewards=rewards)
    kinds = shape_of(rewards)[0] if shape_of(rewards) else 0
    if kinds < 1:
        raise ValueError(
            f"rewards must be [D, B] or [D, G, K] with D >= 1 kinds, got {shown(rewards)}"
        )
    given_weights = (1.0,) * kinds if weights is None else tuple(weights)
    if len(given_weights) != kinds:
        raise ValueError(
            f"weights must be {kinds} numbers, one for each kind of reward, got {shown(weights)}"
        )
    total: Any = 0.0
    for i, weight in enumerate(given_weights):
        given = answers("gdpo", rewards[i], groups, mask, lengths=lengths)
        above = given.groups.centered(given.values[0])
        normal = above / (given.groups.std(above) + eps)
        total = total + finite(f"weights[{i}]", weight) * normal
    return given.result(_whitened(given.groups, total, _weights(given), 1e-8))


def _weights(given: Answers) -> Float64s:
    if len(given.values) == 1:
        return given.groups.ones
    lengths = given.values[1]
    demand(given.groups.xp, "lengths", lengths, lengths >= 0, ">= 0")
    return lengths


def _whitened(groups: Groups, values: Float64s, weights: Float64s, eps: float) -> Float64s:
    batch = groups.whole
    centered = batch.centered(values, weights)
    tokens = batch.sum(weights)
    freedom = groups.xp.maximum(tokens - 1, 1.0)
    variance = batch.sum(weights * centered * centered) / freedom
    return centered / (variance + eps) ** 0.5


def _whitened_tokens(rows: Any, values: Float64s, eps: float) -> Float64s:
    flat = rows.mask.reshape(-1)
    ids = rows.xp.cast(flat, rows.xp.int64) * 0
    tokens = Groups(rows.xp, ids, 1, flat)
    return _whitened(tokens, values.reshape(-1), tokens.ones, eps).reshape(values.shape)
