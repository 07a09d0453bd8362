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
    if loss.entropy_top_p is not None:
        _check_entropies(f"methods.{method}.entropy_top_p", loss.entropy_top_p, spec)
    return spec


def _check_entropies(key: str, top_p: float, spec: Any) -> None:
    """ValueError where no entropy, or not that of the term alone, would be of the likeliest."""
    if spec.entropy is None:
        raise ValueError(f"recipe key '{key}' needs a loss with an entropy term, got {top_p}")
    if spec.control is not None and {"entropy", "old_entropy"} & set(spec.control.needs):
        raise ValueError(
            f"recipe key '{key}' must be null with {spec.control!r}, which goes by the entropy of "
            f"all tokens, got {top_p}"
        )
