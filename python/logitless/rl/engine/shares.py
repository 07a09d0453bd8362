"""Each rank computes the numbers of its own sequences, and has them of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from logitless.rl.engine import ranks
from logitless.rl.policy import Policy
from logitless.rl.rollout import Cut, Rollout, in_parts, of_parts


def own_parts(policy: Policy, rollout: Rollout, index: Tensor, cut: Cut) -> list[Tensor]:
    """This rank's share of these sequences, in as many parts as any rank has: all go forward and
    backward equally often. Some may be empty. Collective."""
    own = index[ranks.share(len(index))]
    parts = in_parts(policy, rollout, own, cut)
    return parts + [own[:0]] * (ranks.largest(len(parts)) - len(parts))


def of_tokens(
    policy: Policy,
    rollout: Rollout,
    cut: Cut,
    # from sequences to numbers of their tokens, [N] each
    work: Callable[[Rollout], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """work(rollout), by all ranks, each a part of its share after the other. Collective."""
    if ranks.alone():
        return of_parts(policy, rollout, cut, work)
    everything = torch.arange(len(rollout.mask), device=rollout.mask.device)
    own = rollout.sequences(everything[ranks.share(len(everything))])

    def own_numbers() -> dict[str, Tensor]:
        if not len(own.mask):
            return {}
        return {name: x.cpu() for name, x in of_parts(policy, own, cut, work).items()}

    parts = [part for part in ranks.each(own_numbers) if part]
    return {
        name: torch.cat([part[name] for part in parts]).to(rollout.mask.device) for name in parts[0]
    }
