"""Everything a training run depends on: typed, read from YAML, checked before anything starts."""

from __future__ import annotations

from logitless.rl.recipe.data import (
    STEPWISE,
    EvaluationRecipe,
    RewardRecipe,
    RolloutRecipe,
    TaskRecipe,
    WarmupRecipe,
)
from logitless.rl.recipe.load import bundled, load_recipe, recipe_of
from logitless.rl.recipe.losses import make_spec
from logitless.rl.recipe.model import LoraRecipe, ModelRecipe
from logitless.rl.recipe.schema import WARMUP, Recipe
from logitless.rl.recipe.seeds import of_seeds
from logitless.rl.recipe.training import (
    ControllerRecipe,
    DistributedRecipe,
    LossRecipe,
    ReferenceRecipe,
    UpdateRecipe,
)
from logitless.rl.recipe.yaml_text import as_yaml

__all__ = [
    "STEPWISE", "WARMUP", "ControllerRecipe", "DistributedRecipe", "EvaluationRecipe", "LoraRecipe",
    "LossRecipe", "ModelRecipe", "Recipe", "ReferenceRecipe", "RewardRecipe", "RolloutRecipe",
    "TaskRecipe", "UpdateRecipe", "WarmupRecipe", "as_yaml", "bundled", "load_recipe", "make_spec",
    "of_seeds", "recipe_of",
]  # fmt: skip
