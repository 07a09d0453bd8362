"""The table of keys says what a recipe takes: it is made of what checks the values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from logitless.cli import main
from logitless.rl.recipe import LossRecipe, Recipe, RewardRecipe, recipe_of
from logitless.rl.recipe.docs_table import MUST, NAME, rows, written
from logitless.rl.recipe.keys import Range, within
from logitless.rl.recipe.training import ADVANTAGE_NAMES
from logitless.rl.update import ADVANTAGES, OF_STEPS
from tests.support.paths import ROOT
from tests.support.recipes import tiny_recipe

SMALLEST = {"methods": {NAME: {"preset": "grpo"}}}


def test_the_page_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """logitless recipe --markdown > docs/recipe.md"""
    assert main(["recipe", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "recipe.md").read_text("utf-8")


def test_the_command_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert named == [row.key for row in rows()]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a recipe by key."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            inner = f"{path}.{field.name}" if path else field.name
            yield from flat(getattr(value, field.name), inner)
    elif path == "methods":
        for name, loss in value.items():
            yield from flat(loss, f"{path}.{name}")
    else:
        yield path, value


def test_defaults_are_those_of_a_recipe() -> None:
    values = dict(flat(recipe_of(SMALLEST, "smallest")))
    table = {row.key: row for row in rows()}
    sections = {key for key in table if any(other.startswith(f"{key}.") for other in table)}
    # null or empty as a whole, with keys of its own where it is not
    controller, rewards = f"methods.{NAME}.controller", "task.rewards"
    inside = {key for key in table if key.startswith((f"{controller}.", f"{rewards}."))}
    assert values.keys() == table.keys() - inside - (sections - {controller, rewards})
    given = {key for key, row in table.items() if row.default == MUST}
    reward = f"{rewards}.{NAME}.function"
    assert given == {"methods", f"methods.{NAME}.preset", f"{controller}.kind", reward}
    for key, value in values.items():
        assert key in given or table[key].default == written(value), key
        assert table[key].about.endswith("."), key
    assert table["update.body_lr"].default == "3e-05" and table["model.path"].default == "null"


def ranges(section: type[Any] = Recipe, path: str = "") -> Iterator[tuple[str, type[Any], Range]]:
    """Of a method's keys those of `tiny_recipe`'s grpo."""
    hints = get_type_hints(section)
    for field in fields(section):
        name, allowed = f"{path}{field.name}", field.metadata.get("allowed")
        if name == "methods":
            yield from ranges(LossRecipe, f"{name}.grpo.")
        elif name == "task.rewards":
            yield from ranges(RewardRecipe, f"{name}.grpo.")
        elif is_dataclass(hints[field.name]):
            yield from ranges(hints[field.name], f"{name}.")
        elif isinstance(allowed, Range):
            yield name, hints[field.name], allowed


RANGES = list(ranges())


@pytest.mark.parametrize(("key", "hint", "allowed"), RANGES, ids=[name for name, *_ in RANGES])
def test_what_is_out_of_a_range_is_refused(
    key: str, hint: Any, allowed: Range, tmp_path: Path
) -> None:
    kind = float if "float" in str(hint) else int
    tried: list[Any] = [-(10**6), -1, 0, 1, 2, 10**6]
    tried += [math.nan, math.inf] if kind is float else []
    wrong = [kind(x) for x in tried if not within(allowed, x)]
    assert wrong
    for value in wrong:
        text = {"nan": ".nan", "inf": ".inf"}.get(str(value), str(value))
        more = {
            "task.rewards.grpo.weight": "task.rewards.grpo.function=format",
            "task.rewards.grpo.threshold": "task.rewards.grpo.function=format",
            "reference.decay": "reference.kind=ema",
            "reference.every": "reference.kind=anchor",
        }
        with pytest.raises(ValueError, match=f"recipe key '{key}' must be ") as caught:
            tiny_recipe(tmp_path, more.get(key, "seed=0"), f"{key}={text}")
        assert str(caught.value).endswith(f"must be {allowed.text}, got {value}")


def test_numbers_have_a_range() -> None:
    numbers = {row.key for row in rows() if {"int", "float"} & set(row.kind.split())}
    without = numbers - {name.replace(".grpo.", f".{NAME}.") for name, *_ in RANGES}
    assert without == {"seeds", "model.vocab_size", "update.tail_mass"}


def test_names_of_advantages_are_those_of_the_trainer() -> None:
    assert ADVANTAGE_NAMES.split(", ") == [*ADVANTAGES, *OF_STEPS]
    assert "advantage" in get_type_hints(LossRecipe)
