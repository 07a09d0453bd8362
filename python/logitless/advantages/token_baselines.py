"""Advantages of tokens against a baseline that other answers of the group give them."""

from __future__ import annotations

from logitless.advantages.arguments import TokenRows, demand, row_groups, token_rows
from logitless.advantages.returns import carried, discounted
from logitless.inputs.arrays import check_dtype, check_shape, framework, shape_of
from logitless.inputs.checks import positive, whole
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Bools, Float64s


@public
def optimal_token_baseline(
    rewards: Array,  # [B, T]
    old_logp: Array,  # [B, T]
    sum_p2: Array,  # [B, T], of a token's distribution: sum of squared probabilities
    groups: Array,  # int64 or int32 [B]
    mask: Array,  # bool [B, T]
    *,
    weights: Array | None = None,  # [B, T], importance weights of the rollout
    eps: float = 1e-8,
) -> Array:
    """The rewards from a token on, less a baseline for its place among the group's answers, each
    weighted by the squared gradient it has gathered. In plain code, of one group's rows [K, T]:

        G = returns(rewards, mask)
        W = (weights ** 2 * (1 - 2 * old_logp.exp() + sum_p2)).cumsum(dim=1)
        G - (G * W).sum(dim=0) / (W.sum(dim=0) + eps)

    Places count valid tokens: those outside the mask are skipped. A place that only one answer
    reaches has the baseline 0. 1 - 2 p + sum_p2 is the squared norm of the gradient of log p in the
    logits. The result is [B, T], 0 outside the mask: float64 where the rewards are, else float32.
    Raises ValueError for shapes that differ and values that are not finite; TypeError for dtypes.
    Paper: arXiv:2602.07078; verl's optimal_token_baseline and tir_optimal_token_baseline.
    """
    positive("eps", eps)
    rows = token_rows(
        "optimal_token_baseline", mask, rewards=rewards, old_logp=old_logp, sum_p2=sum_p2,
        weights=weights,
    )  # fmt: skip
    group = row_groups("optimal_token_baseline", rows, groups)
    xp, width = rows.xp, shape_of(rewards)[1]
    _, logp, squares, *given = rows.values
    energy = 1 - 2 * xp.exp(logp) + squares
    if given:
        energy = energy * given[0] ** 2
    gained = discounted(rows, 1.0)
    path = xp.where(rows.mask, energy, 0.0).cumsum(1)
    one = xp.cast(rows.mask, xp.float64)
    # (group, place) as one id
    place = xp.cast(xp.maximum(one.cumsum(1) - 1, 0.0), xp.int64)
    ids = (group.ids[:, None] * width + place).reshape(-1)

    def summed(values: Float64s) -> Float64s:
        sums = xp.sums(xp.where(rows.mask, values, 0.0).reshape(-1), ids, group.number * width)
        return sums[ids].reshape(values.shape)

    baseline = summed(gained * path) / (summed(path) + eps)
    return rows.result(gained - xp.where(summed(one) > 1, baseline, 0.0))


@public
def min_form(
    rewards: Array,  # [B, T], of a process reward model
    steps: Array,  # bool [B, T]: where a step ends, and has its reward
    *,
    temperature: float = 0.1,
) -> Array:
    """Rewards of steps reweighted so that their sum is near the smallest of them. In plain code,
    of one answer's rewards r at the ends of its steps:

        softmax(-r / temperature) * r

    The result is [B, T], 0 outside of `steps`; what lies there is not read. Dtypes and errors as in
    `returns`; temperature must be > 0. Paper: arXiv:2504.15275.
    """
    positive("temperature", temperature)
    rows = token_rows("min_form", steps, rewards=rewards)
    return rows.result(_least(rows, rows.mask, rows.values[0], temperature))


@public
def pure(
    rewards: Array,  # [B, T], of a process reward model
    steps: Array,  # bool [B, T]: where a step ends, and has its reward
    groups: Array,  # int64 or int32 [B]
    mask: Array,  # bool [B, T]
    *,
    temperature: float = 0.1,
    max_length: int | None = None,
) -> Array:
    """min_form's rewards from a token on, less the mean of them over the tokens of the group's
    other answers. In plain code, of one group's rows [K, T]:

        R = returns(min_form(rewards, steps), mask)
        R - (R.sum() - R.sum(dim=1)) / ((K - 1) * max_length)

    max_length=None is T; the authors pad answers to the limit of generation and divide by that. A
    single answer has the baseline 0. Result, dtypes and errors as in `min_form`; a step must end
    at a valid token. Paper: arXiv:2504.15275.
    """
    positive("temperature", temperature)
    if max_length is not None:
        whole("max_length", max_length, least=1)
    rows = token_rows("pure", steps, rewards=rewards)
    framework("pure", mask=mask, steps=steps)
    check_shape("pure", "mask", mask, "[B, T]", shape_of(rewards))
    check_dtype("pure", "mask", mask, "bool")
    xp = rows.xp
    valid = xp.truths(mask)
    ends = xp.cast(rows.mask, xp.float64)
    demand(xp, "steps", ends, ~rows.mask | valid, "False where the mask is")
    length = shape_of(rewards)[1] if max_length is None else max_length
    tokens = rows._replace(mask=valid)
    group = row_groups("pure", tokens, groups)
    least = _least(rows, rows.mask, rows.values[0], temperature)
    gained = xp.where(valid, carried(xp, least, ends * 0 + 1.0), 0.0)
    totals = gained.sum(1)
    others = xp.maximum(group.size - 1, 1.0)
    baseline = (group.sum(totals) - totals) / (others * length)
    return tokens.result(gained - xp.where(group.size > 1, baseline, 0.0)[:, None])


def _least(rows: TokenRows, steps: Bools, values: Float64s, temperature: float) -> Float64s:
    xp = rows.xp
    scaled = xp.where(steps, -values / temperature, -float("inf"))
    high = xp.row_max(scaled)
    high = xp.where(xp.isfinite(high), high, 0.0)
    weight = xp.exp(scaled - high)
    total = weight.sum(1)[:, None]
    return values * weight / xp.where(total > 0, total, 1.0)
