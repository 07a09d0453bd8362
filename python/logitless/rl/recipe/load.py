"""Recipes from files.

recipe = load_recipe("demo", ["steps=10", "methods.grpo.change.surrogate.high=0.28"])
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from logitless.rl.recipe.convert import build, shown
from logitless.rl.recipe.schema import Recipe
from logitless.rl.recipe.yaml_text import LONGEST, parse


def bundled() -> list[str]:
    """Names of the recipes inside the package."""
    names = [file.name for file in _recipes().iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a YAML file, or a bundled recipe by name, and applies `key.sub=value` overrides.

    ValueError where a key is unknown (with the nearest known one), a value has the wrong type or an
    override is not `key=value`; FileNotFoundError where `source` is neither a file nor bundled.
    """
    if source in bundled():
        text = _recipes().joinpath(f"{source}.yaml").read_text("utf-8")
    elif Path(source).is_file():
        with Path(source).open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    else:
        raise FileNotFoundError(
            f"recipe {source!r} is no file and not one of the bundled ones: {', '.join(bundled())}"
        )
    return recipe_of(parse(text, f"recipe {source!r}") or {}, source, overrides)


def recipe_of(tree: Any, source: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of plain values; `source` is for errors, and as in `load_recipe`."""
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {source!r} must be a mapping of keys, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    recipe: Recipe = build(Recipe, tree)
    return recipe


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {shown(override)} must be key=value, like rollout.group=8")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {shown(override)}: '{parent}' holds a value, not keys")
    tree[last] = parse(text, f"override {shown(override)}")


def _recipes() -> Any:
    return resources.files(__package__).joinpath("recipes")
