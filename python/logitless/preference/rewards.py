"""Rewards of an ensemble of reward models, none of which is believed alone."""

from __future__ import annotations

from logitless.inputs.arrays import framework, shape_of
from logitless.inputs.checks import not_negative
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.preference.arguments import Given, given_floats


@public
def worst_case(
    rewards: Array,  # [M, ...], of M reward models
) -> Array:  # [...]
    """The smallest of M rewards. In plain code:

        rewards.amin(dim=0)

    Rewards are data: float64 where they are, else float32. Raises ValueError for rewards that
    require a gradient, have no model and, on the CPU, are not finite; TypeError for dtypes.
    Paper: arXiv:2310.02743.
    """
    given = _ensemble("worst_case", rewards)
    return given.result(given.xp.least(given.values["rewards"]))


@public
def uncertainty_weighted(
    rewards: Array,  # [M, ...], of M reward models
    *,
    coefficient: float = 1.0,
) -> Array:  # [...]
    """The mean of M rewards less their variance. In plain code:

        rewards.mean(dim=0) - coefficient * rewards.var(dim=0, correction=0)

    coefficient, >= 0, is in 1 / units of the reward. Dtypes and errors as in `worst_case`.
    Paper: arXiv:2310.02743.
    """
    not_negative("coefficient", coefficient)
    given = _ensemble("uncertainty_weighted", rewards)
    values = given.values["rewards"]
    mean = values.mean(0)
    return given.result(mean - coefficient * ((values - mean) ** 2).mean(0))


def _ensemble(op: str, rewards: Array) -> Given:
    framework(op, rewards=rewards)
    shape = shape_of(rewards)
    if len(shape) < 2 or shape[0] < 1:
        raise ValueError(f"rewards must be [M, ...], M >= 1 reward models, got {list(shape)}")
    letters = "[M" + ", ." * (len(shape) - 1) + "]"
    return given_floats(op, letters, {"rewards": rewards}, data=("rewards",))
