"""Each rank computes the numbers of its own sequences, and has them of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from logitless.rl.engine import ranks
from logitless.rl.rollout import Rollout


def own_sequences(rollout: Rollout) -> Rollout:
    """This rank's; perhaps none."""
    everything = torch.arange(len(rollout.mask), device=rollout.mask.device)
    return rollout.sequences(everything[ranks.share(len(everything))])


def of_tokens(
    rollout: Rollout,
    # from sequences to numbers of their tokens, [N] each
    work: Callable[[Rollout], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """work(rollout), by all ranks. Collective."""
    if ranks.alone():
        return work(rollout)
    own = own_sequences(rollout)

    def own_numbers() -> dict[str, Tensor]:
        return {name: x.cpu() for name, x in work(own).items()} if len(own.mask) else {}

    parts = [part for part in ranks.each(own_numbers) if part]
    return {
        name: torch.cat([part[name] for part in parts]).to(rollout.mask.device) for name in parts[0]
    }
