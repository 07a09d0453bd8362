"""The loss of a method: a preset of the library with the recipe's changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import logitless as ll
from logitless.rl.recipe.convert import build, unknown
from logitless.rl.recipe.training import LossRecipe


def make_spec(method: str, loss: LossRecipe, max_new_tokens: int | None = None) -> Any:
    """The PolicyLossSpec of a method. A loss that divides by a length divides by the limit of a
    rollout, max_new_tokens, where its recipe says nothing else.

    A change reaches into the parts of the preset: {control: {fraction: 0.1}}. Where the preset has
    no such part, the one dataclass that has the given keys is made: {entropy: {coefficient: 0.01}}.
    """
    if loss.preset not in ll.presets:
        raise ValueError(unknown("preset", loss.preset, ll.presets))
    preset = ll.presets[loss.preset]
    spec = build(type(preset), loss.change, f"methods.{method}.change", preset)
    if spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        spec = replace(spec, max_length=max_new_tokens)
    return spec
