from __future__ import annotations

from pathlib import Path

import pytest
import torch

from logitless.rl.demo.job import run
from logitless.rl.update.advantages import ADVANTAGES, advantage_name, advantages_of
from tests.support.recipes import tiny_recipe

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])


def test_values() -> None:
    # The unbiased deviation of 1, 0, 0, 1 is sqrt(1/3).
    high = 0.5 / (3**-0.5 + 1e-4)
    expected = torch.tensor([high, -high, -high, high, 0, 0, 0, 0])
    torch.testing.assert_close(advantages_of(REWARDS, "group_std"), expected)
    half = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    torch.testing.assert_close(advantages_of(REWARDS, "group_mean"), half)
    # 1 - mean(0, 0, 1) = 2/3.
    torch.testing.assert_close(advantages_of(REWARDS, "leave_one_out"), half * 4 / 3)


@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_equal_rewards_teach_nothing_and_others_something(kind: str) -> None:
    advantages = advantages_of(REWARDS, kind).view(2, 4)
    assert not advantages[1].any()
    assert advantages[0, 0] == advantages[0, 3] > 0
    # a quantile is no mean
    if kind != "qae":
        assert advantages.sum(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"grpo": "group_std", "clip_cov": "group_std", "loo": "leave_one_out"}),
        (
            ("methods.grpo.advantage=max_rl",),
            {"grpo": "max_rl", "clip_cov": "group_std", "loo": "leave_one_out"},
        ),
        (
            ("update.advantage=group_mean", "methods.loo.advantage=qae"),
            {"grpo": "group_mean", "clip_cov": "group_mean", "loo": "qae"},
        ),
    ],
)
def test_a_preset_brings_its_advantage(
    tmp_path: Path, overrides: tuple[str, ...], expected: dict[str, str]
) -> None:
    recipe = tiny_recipe(tmp_path, "methods.loo.preset=rloo", *overrides)
    assert {name: advantage_name(recipe, name) for name in recipe.methods} == expected


@pytest.mark.parametrize("key", ["update.advantage", "methods.grpo.advantage"])
def test_unknown_kinds_are_refused_before_anything_is_written(tmp_path: Path, key: str) -> None:
    message = rf"recipe key '{key}' must be one of .*, got 'gae'"
    with pytest.raises(ValueError, match=message):
        run(tiny_recipe(tmp_path, f"{key}=gae"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
