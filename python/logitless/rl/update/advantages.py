"""From rewards to advantages: each way compares the answers of one prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

import logitless as ll

# What a recipe calls them.
ADVANTAGES: dict[str, Callable[[Tensor], Any]] = {
    "group_std": partial(ll.advantages.grpo, eps=1e-4),
    "group_mean": ll.advantages.dr_grpo,
    "leave_one_out": ll.advantages.rloo,
}


def advantages_of(
    rewards: Tensor,  # [prompts, group] fp32
    kind: str,
) -> Tensor:  # [prompts * group]
    """ADVANTAGES[kind](rewards), one number per sequence."""
    if kind not in ADVANTAGES:
        raise ValueError(f"update.advantage must be one of {sorted(ADVANTAGES)}, got {kind!r}")
    found: Tensor = ADVANTAGES[kind](rewards)
    return found.flatten()
