"""From rewards to advantages: each way compares the answers of one prompt."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def group_std(rewards: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) per group, as GRPO (arXiv 2402.03300); a group of equal rewards
    gets zeros.
    """
    centered = group_mean(rewards)
    return centered / (rewards.std(dim=1, keepdim=True) + 1e-4)


def group_mean(rewards: Tensor) -> Tensor:
    """r - mean per group, as Dr. GRPO (arXiv 2503.20783)."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r - mean of the others per group, as RLOO (arXiv 2402.14740)."""
    return group_mean(rewards) * rewards.shape[1] / (rewards.shape[1] - 1)


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
}


def advantages_of(
    rewards: Tensor,  # [prompts, group] fp32
    kind: str,
) -> Tensor:  # [prompts * group]
    """ADVANTAGES[kind](rewards), one number per sequence."""
    if kind not in ADVANTAGES:
        raise ValueError(f"update.advantage must be one of {sorted(ADVANTAGES)}, got {kind!r}")
    return ADVANTAGES[kind](rewards).flatten()
