"""The runs of one seed each that a recipe with `seeds` stands for."""

from __future__ import annotations

from dataclasses import replace

from logitless.rl.recipe.schema import Recipe


def of_seeds(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes of one seed each, by their folders inside of the run's: seed0, seed1, ...

    What a seed makes is what the recipe with that `seed` alone would make. A recipe without `seeds`
    is itself, in the folder `.`.
    """
    if not recipe.seeds:
        return {".": recipe}
    return {f"seed{seed}": replace(recipe, seed=seed, seeds=[]) for seed in recipe.seeds}
