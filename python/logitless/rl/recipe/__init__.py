"""Everything a training run depends on: typed, read from YAML, checked before anything starts."""

from __future__ import annotations

from logitless.rl.recipe.load import bundled, load_recipe
from logitless.rl.recipe.losses import make_spec
from logitless.rl.recipe.schema import (
    WARMUP,
    LossRecipe,
    ModelRecipe,
    Recipe,
    RolloutRecipe,
    TaskRecipe,
    UpdateRecipe,
    WarmupRecipe,
)

__all__ = [
    "WARMUP", "LossRecipe", "ModelRecipe", "Recipe", "RolloutRecipe", "TaskRecipe", "UpdateRecipe",
    "WarmupRecipe", "bundled", "load_recipe", "make_spec",
]  # fmt: skip
