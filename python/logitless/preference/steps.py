"""Losses and rewards of single answers, from the log-ratios of their tokens to a reference."""

from __future__ import annotations

from typing import Any, NamedTuple

from logitless.advantages.arguments import demand, token_rows
from logitless.inputs.arrays import check_dtype, check_shape, framework, shape_of
from logitless.inputs.checks import flag, positive
from logitless.inputs.gradients import refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Bools, Float64s
from logitless.inputs.weights import FLOATS
from logitless.preference.arguments import given_floats, on_host


class Oreo(NamedTuple):
    """[B], 0 of an answer without a state."""

    # differentiable in logp
    policy: Any
    # differentiable in values
    value: Any


@public
def oreo(
    logp: Array,  # [B, T]
    ref_logp: Array,  # [B, T], data
    values: Array,  # [B, T], of the state before each token
    rewards: Array,  # [B], of whole answers, data
    mask: Array,  # bool [B, T]
    states: Array | None = None,  # bool [B, T]: before which tokens there is a state
    *,
    beta: float = 0.03,
) -> Oreo:
    """Offline reasoning optimisation: the soft Bellman equation of an answer, once as a loss of the
    value and once of the policy. In plain code, of one answer's valid tokens, each a state:

        ratio = beta * (logp - ref_logp)
        rest = ratio.flip(0).cumsum(0).flip(0)             # from a token on
        value = ((values + rest.detach() - rewards) ** 2).mean()
        policy = ((values.detach() + ratio + (rest - ratio).detach() - rewards) ** 2).mean()

    states=None are all valid tokens. Fewer, where the steps of the answer begin, make a step the
    action: the policy's gradient reaches the tokens up to the next state, and means are over
    states. The authors add 0.01 times the KL of policy and reference to the policy's loss. Results
    are float64 where logp is, else float32, computed in float64; what lies outside the mask is not
    read. NumPy arrays or torch tensors; a device is waited for by nothing.

    Raises ValueError for shapes that differ, data that requires a gradient, states outside the mask
    and, on the CPU, values that are not finite; TypeError for dtypes. Paper: arXiv:2412.16145.
    """
    positive("beta", beta)
    arrays = {"logp": logp, "ref_logp": ref_logp, "values": values}
    given = given_floats("oreo", "[B, T]", arrays, data=("ref_logp",), mask=mask)
    xp, at = given.xp, given.values
    rows = shape_of(logp)[0]
    framework("oreo", {"states": states}, logp=logp, rewards=rewards)
    check_shape("oreo", "rewards", rewards, "[B]", (rows,))
    check_dtype("oreo", "rewards", rewards, *FLOATS)
    refuse_grad(rewards=rewards)
    reward = xp.cast(rewards, xp.float64)[:, None]
    if on_host(rewards):
        demand(xp, "rewards", reward, xp.isfinite(reward), "finite")
    starts = given.mask if states is None else _within(xp, "oreo", "states", states, given.mask)
    ratio = beta * (at["logp"] - at["ref_logp"])
    # tokens before the first state belong to none
    own = _of_steps(xp, ratio, xp.cast(starts, xp.int64).cumsum(1))
    rest = xp.data(ratio)
    # from a token on, of the tokens that count
    rest = rest.sum(1)[:, None] - rest.cumsum(1) + rest
    ones = xp.cast(starts, xp.float64)
    number = xp.maximum(ones.sum(1), 1.0)

    def squared(difference: Float64s) -> Array:
        held = xp.where(starts, difference, 0.0)
        return given.result((held * held).sum(1) / number)

    value = squared(at["values"] + rest - reward)
    return Oreo(squared(xp.data(at["values"]) + rest + own - xp.data(own) - reward), value)


@public
def implicit_rewards(
    logp: Array,  # [B, T], of the reward model
    ref_logp: Array,  # [B, T]
    steps: Array,  # bool [B, T]: where a step ends, and has its reward
    mask: Array,  # bool [B, T]
    *,
    beta: float = 0.05,
    cumulative: bool = False,
) -> Array:  # [B, T]
    """The rewards of steps that a language model implies, trained on whole answers as a reward
    model. In plain code, of one answer's valid tokens:

        total = beta * (logp - ref_logp).cumsum(0)[steps]
        total.diff(prepend=torch.zeros(1))                 # total itself with cumulative

    The result is [B, T], 0 outside of `steps`; with steps=mask each token is a step. Tokens after
    the last step have no part. Everything is data, and a device is asked whether it is finite.
    Dtypes and errors as in `advantages.min_form`, which takes such rewards; a step must end at a
    valid token. Paper: arXiv:2412.01981.
    """
    positive("beta", beta)
    flag("cumulative", cumulative)
    rows = token_rows("implicit_rewards", mask, logp=logp, ref_logp=ref_logp)
    framework("implicit_rewards", logp=logp, steps=steps)
    xp, ratio = rows.xp, beta * (rows.values[0] - rows.values[1])
    ends = _within(xp, "implicit_rewards", "steps", steps, rows.mask)
    ended = xp.cast(ends, xp.int64)
    found = ratio.cumsum(1) if cumulative else _of_steps(xp, ratio, ended.cumsum(1) - ended)
    return rows._replace(mask=ends).result(found)


@public
def outcome(
    logp: Array,  # [B], of whole answers: sequence_logp
    ref_logp: Array,  # [B], data
    labels: Array,  # [B] in [0, 1], data: whether the answer is right
    *,
    beta: float = 0.05,
) -> Array:  # [B]
    """What trains the reward model of `implicit_rewards` where answers come without pairs. In plain
    code:

        binary_cross_entropy_with_logits(beta * (logp - ref_logp), labels)

    Result, dtypes and errors as in `dpo`. Paper: arXiv:2412.01981.
    """
    positive("beta", beta)
    arrays = {"logp": logp, "ref_logp": ref_logp, "labels": labels}
    given = given_floats("outcome", "[B]", arrays, data=("ref_logp", "labels"))
    xp, label = given.xp, given.values["labels"]
    if on_host(labels):
        demand(xp, "labels", label, (label >= 0) & (label <= 1), "in [0, 1]")
    x = beta * (given.values["logp"] - given.values["ref_logp"])
    return given.result(-label * xp.log_sigmoid(x) - (1 - label) * xp.log_sigmoid(-x))


def _within(xp: Any, op: str, name: str, places: Array, mask: Bools) -> Bools:
    check_shape(op, name, places, "[B, T]", shape_of(mask))
    held = as_mask(places)
    check_dtype(op, name, held, "bool")
    held = xp.truths(held)
    if on_host(mask):
        demand(xp, name, xp.cast(held, xp.float64), ~held | mask, "False where the mask is")
    return held & mask


def _of_steps(xp: Any, x: Float64s, step: Array) -> Float64s:
    """For each token the sum of x over its step, of which an answer has fewer than T + 1."""
    rows, width = step.shape
    ids = (xp.arange(rows, x)[:, None] * (width + 1) + step).reshape(-1)
    return xp.sums(x.reshape(-1), ids, rows * (width + 1))[ids].reshape(x.shape)
