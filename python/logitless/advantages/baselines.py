"""Advantages of whole answers against a baseline of their group: one number an answer."""

from __future__ import annotations

from logitless.advantages.arguments import answers, demand
from logitless.inputs.arrays import framework
from logitless.inputs.checks import positive, require
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array


@public
def grpo(
    rewards: Array,  # [B] with groups, or [G, K]
    groups: Array | None = None,  # int64 or int32 [B]
    mask: Array | None = None,  # bool, shaped like rewards
    *,
    eps: float = 1e-6,
) -> Array:
    """How far an answer is above its group's mean, in standard deviations. In plain code, of a
    group r [K]:

        (r - r.mean()) / (r.std() + eps)            # the unbiased standard deviation

    Rewards are [G, K], K answers to each of G prompts, or [B] with the id of each answer's group
    (any integers, in any order). An answer where the mask is False does not count: its reward is
    not read and its advantage is 0. A single answer has nothing to be compared with, and gets 0;
    so do equal rewards, exactly. The result is shaped like rewards: float64 where they are, else
    float32, computed in float64. NumPy arrays or torch tensors, on any device.

    Raises ValueError for shapes that differ and for rewards that are not finite, which a device
    is asked for; TypeError for dtypes. Paper: arXiv:2402.03300. TRL's eps is 1e-4, verl's 1e-6.
    """
    positive("eps", eps)
    given = answers("grpo", rewards, groups, mask)
    above = given.groups.centered(given.values[0])
    return given.result(above / (given.groups.std(above) + eps))


@public
def dr_grpo(rewards: Array, groups: Array | None = None, mask: Array | None = None) -> Array:
    """How far an answer is above its group's mean. In plain code, of a group r [K]:

        r - r.mean()

    Arguments, result and errors as in `grpo`. Paper: arXiv:2503.20783.
    """
    given = answers("dr_grpo", rewards, groups, mask)
    return given.result(given.groups.centered(given.values[0]))


@public
def rloo(rewards: Array, groups: Array | None = None, mask: Array | None = None) -> Array:
    """How far an answer is above the mean of the others of its group. In plain code, of a group
    r [K]:

        r - (r.sum() - r) / (K - 1)

    Arguments, result and errors as in `grpo`; a single answer gets 0. Paper: arXiv:2402.14740.
    """
    given = answers("rloo", rewards, groups, mask)
    size = given.groups.size
    others = given.groups.xp.maximum(size - 1, 1.0)
    return given.result(given.groups.centered(given.values[0]) * size / others)


@public
def remax(
    rewards: Array,  # [B] or [G, K]
    greedy_rewards: Array,  # the same, or [G] with [G, K]
    mask: Array | None = None,  # bool, shaped like rewards
) -> Array:
    """How far an answer is above the greedy answer to its prompt. In plain code:

        rewards - greedy_rewards

    Result and errors as in `grpo`. Of rewards per token, `returns(rewards, mask) -
    greedy_rewards[:, None]`. Paper: arXiv:2310.10505.
    """
    framework("remax", {"mask": mask}, rewards=rewards, greedy_rewards=greedy_rewards)
    if rewards.ndim == 2 and greedy_rewards.ndim == 1 and len(rewards) == len(greedy_rewards):
        greedy_rewards = greedy_rewards[:, None] + 0 * rewards
    given = answers("remax", rewards, None, mask, ungrouped=True, greedy_rewards=greedy_rewards)
    return given.result(given.values[0] - given.values[1])


@public
def opo(
    rewards: Array,
    lengths: Array,  # int64 or int32, shaped like rewards
    groups: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """How far an answer is above its group's mean reward per token, the baseline of least variance
    if an answer's squared gradient grows with its length. In plain code, of a group r, lengths [K]:

        r - (lengths * r).sum() / lengths.sum()

    Arguments, result and errors as in `grpo`; lengths must be >= 0. Paper: arXiv:2505.23585.
    """
    given = answers("opo", rewards, groups, mask, lengths=lengths)
    values, weights = given.values
    demand(given.groups.xp, "lengths", weights, weights >= 0, ">= 0")
    return given.result(given.groups.centered(values, weights))


@public
def gpg(
    rewards: Array,
    groups: Array | None = None,
    mask: Array | None = None,
    *,
    f_norm: float = 1.0,
) -> Array:
    """dr_grpo's advantages, scaled up by the answers whose group teaches nothing. In plain code:

        informative = group_max > group_min                        # per answer
        rewards.size / informative.sum() * (rewards - group_mean) / f_norm

    It looks at the whole batch: pass all of it. Arguments, result and errors as in `grpo`.
    Paper: arXiv:2504.02546.
    """
    positive("f_norm", f_norm)
    given = answers("gpg", rewards, groups, mask)
    group, values = given.groups, given.values[0]
    xp = group.xp
    informative = xp.where(group.max(values) > -group.max(-values), 1.0, 0.0)
    share = group.whole.mean(informative)
    alpha = 1.0 / xp.where(share > 0, share, 1.0)
    return given.result(alpha * group.centered(values) / f_norm)


@public
def max_rl(
    rewards: Array,
    groups: Array | None = None,
    mask: Array | None = None,
    *,
    eps: float = 1e-6,
) -> Array:
    """How far an answer is above its group's mean, in means: for rewards of 0 and 1 the gradient
    of the log-likelihood of a right answer, to the order of the group's size. In plain code, of a
    group r [K]:

        (r - r.mean()) / (r.mean() + eps)

    Arguments, result and errors as in `grpo`; rewards must be >= 0. Paper: arXiv:2602.02710.
    """
    positive("eps", eps)
    given = answers("max_rl", rewards, groups, mask)
    group, values = given.groups, given.values[0]
    demand(group.xp, "rewards", values, values >= 0, ">= 0")
    return given.result(group.centered(values) / (group.mean(values) + eps))


@public
def qae(
    rewards: Array,
    groups: Array | None = None,
    mask: Array | None = None,
    *,
    quantile: float = 0.4,
    eps: float = 1e-6,
) -> Array:
    """grpo with the group's quantile in place of its mean: on a hard prompt only right answers
    have an advantage, on an easy one only wrong ones. In plain code, of a group r [K]:

        (r - np.quantile(r, quantile)) / (r.std() + eps)

    Arguments, result and errors as in `grpo`; quantile lies in (0, 1), and a single answer gets 0.
    Paper: arXiv:2509.22611.
    """
    positive("eps", eps)
    require("quantile", quantile, lambda q: 0.0 < q < 1.0, "in (0, 1)")
    given = answers("qae", rewards, groups, mask)
    group, values = given.groups, given.values[0]
    above = values - group.quantile(values, quantile)
    return given.result(above / (group.std(group.centered(values)) + eps))
