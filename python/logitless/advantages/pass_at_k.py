"""Advantages for the best of several answers: the aim is pass@k instead of the mean reward."""

from __future__ import annotations

from logitless.advantages.arguments import answers, demand
from logitless.inputs.checks import flag, positive, whole
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array


@public
def pass_at_k(
    rewards: Array,  # [B] with groups, or [G, K]; 0 or 1
    k: int,
    groups: Array | None = None,  # int64 or int32 [B]
    mask: Array | None = None,  # bool, shaped like rewards
    *,
    eps: float = 1e-6,
) -> Array:
    """The advantage of an answer for the best of k, averaged over all k of its group's n answers
    that have it, in closed form. In plain code, of a group with `wrong` answers of reward 0:

        mean = 1 - comb(wrong, k) / comb(n, k)
        std = (mean * (1 - mean)) ** 0.5
        right answers: (1 - mean) / (std + eps)
        wrong answers: (1 - mean - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)) / (std + eps)

    Arguments, result and errors as in `grpo`; rewards are 0 or 1, k >= 1, and a group of fewer than
    k answers gets 0. k = 1 is grpo with the biased standard deviation. Paper: arXiv:2508.10751.
    """
    whole("k", k, least=1)
    positive("eps", eps)
    given = answers("pass_at_k", rewards, groups, mask)
    group, values = given.groups, given.values[0]
    xp, size = group.xp, group.size
    right = values == 1
    demand(xp, "rewards", values, right | (values == 0), "0 or 1")
    wrong = size - group.sum(values)
    # comb(wrong - 1, k - 1) / comb(n - 1, k - 1), then comb(wrong, k) / comb(n, k)
    none_with = wrong * 0 + 1.0
    for i in range(1, k):
        none_with = none_with * xp.maximum(wrong - i, 0.0) / xp.maximum(size - i, 1.0)
    none = none_with * wrong / size
    std = (none * (1 - none)) ** 0.5
    advantages = xp.where(right, none, none - none_with) / (std + eps)
    return given.result(xp.where(size >= k, advantages, 0.0))


@public
def grpo_passk(
    rewards: Array,  # [B] with groups, or [G, K]
    groups: Array | None = None,
    mask: Array | None = None,
    *,
    scale: bool = True,
    eps: float = 1e-6,
) -> Array:
    """What the best answer of a group adds to it; all others get 0. In plain code, of a group
    r [K]:

        first, second = r.topk(2).values
        where(r == first, first - second, 0) / (r.std() + eps)     # scale=False: not divided

    Arguments, result and errors as in `grpo`; a single answer gets 0. Paper: arXiv:2503.19595.
    """
    flag("scale", scale)
    positive("eps", eps)
    given = answers("grpo_passk", rewards, groups, mask)
    group, values = given.groups, given.values[0]
    xp = group.xp
    first = group.max(values)
    best = values == first
    alone = group.sum(xp.where(best, 1.0, 0.0)) == 1
    second = group.max(xp.where(best, -float("inf"), values))
    adds = xp.where(best & alone & xp.isfinite(second), values - second, 0.0)
    if scale:
        adds = adds / (group.std(group.centered(values)) + eps)
    return given.result(adds)
