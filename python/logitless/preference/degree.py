"""How much better an answer is than another, as a class that a model learns to tell."""

from __future__ import annotations

from logitless.advantages.arguments import INTEGERS, demand
from logitless.inputs.arrays import check_dtype, check_shape, framework, shape_of
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.preference.arguments import given_floats, on_host


@public
def spo(
    scores: Array,  # [M, D], a classifier's, of M answers
    degrees: Array,  # int64 or int32 [M]: in [0, D), how much of the answer was taken away
) -> Array:  # [M]
    """Self-supervised preference optimisation's loss of the preference degree, which is added to a
    loss of pairs. In plain code:

        cross_entropy(scores, degrees, reduction="none")

    The chosen answer loses its key content to D degrees, and a classifier on the policy, given here
    by its scores, tells by how much: `dpo(...).mean() + gamma * spo(scores, degrees).mean()`.
    Result, dtypes and errors as in `dpo`; differentiable in scores. On a device a degree outside of
    [0, D) is torch's to refuse. Paper: arXiv:2409.17791.
    """
    given = given_floats("spo", "[M, D]", {"scores": scores})
    framework("spo", scores=scores, degrees=degrees)
    rows, kinds = shape_of(scores)
    if kinds < 1:
        raise ValueError(f"scores must be [M, D] with D >= 1 degrees, got {[rows, kinds]}")
    check_shape("spo", "degrees", degrees, "[M]", (rows,))
    check_dtype("spo", "degrees", degrees, *INTEGERS)
    xp, places = given.xp, given.xp.cast(degrees, given.xp.int64)
    if on_host(scores):
        demand(xp, "degrees", places, (places >= 0) & (places < kinds), f"in [0, {kinds})")
    logp = xp.log_softmax(given.values["scores"])
    return given.result(-logp[xp.arange(rows, logp), places])
