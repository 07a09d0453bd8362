"""From rewards to advantages: each way compares the answers of one prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

import logitless as ll
from logitless.rl.recipe import Recipe
from logitless.rl.update.step_advantages import OF_STEPS

# What a recipe calls them: functions of rewards alone.
ADVANTAGES: dict[str, Callable[[Tensor], Any]] = {
    "group_std": partial(ll.advantages.grpo, eps=1e-4),
    "group_mean": ll.advantages.dr_grpo,
    "leave_one_out": ll.advantages.rloo,
    "gpg": ll.advantages.gpg,
    "max_rl": ll.advantages.max_rl,
    "qae": ll.advantages.qae,
}
# Those of the presets that do without the group's standard deviation.
OF_PRESETS = {"dr_grpo": "group_mean", "rloo": "leave_one_out", "gpg": "gpg"}


def advantage_name(recipe: Recipe, method: str) -> str:
    """The method's own, else the recipe's for all methods, else that of the method's preset."""
    loss, update = recipe.methods[method], recipe.update
    given = {f"methods.{method}.advantage": loss.advantage, "update.advantage": update.advantage}
    for key, name in given.items():
        if name is None:
            continue
        if name not in ADVANTAGES and name not in OF_STEPS:
            known = sorted([*ADVANTAGES, *OF_STEPS])
            raise ValueError(f"recipe key '{key}' must be one of {known}, got {name!r}")
        return name
    return OF_PRESETS.get(loss.preset, "group_std")


def advantages_of(
    rewards: Tensor,  # [prompts, group] fp32
    kind: str,
) -> Tensor:  # [prompts * group]
    """ADVANTAGES[kind](rewards), one number per sequence."""
    found: Tensor = ADVANTAGES[kind](rewards)
    return found.flatten()
