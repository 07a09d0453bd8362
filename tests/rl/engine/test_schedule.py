"""Learning rates that warm up and fall: their values, and runs that stop half way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from logitless.rl.demo.job import run
from logitless.rl.engine.schedule import make_schedule, share_of
from logitless.rl.recipe import UpdateRecipe
from logitless.rl.tracking import checkpoint, metrics
from tests.support.recipes import tiny_recipe

ONE = ("compare_repeats=0", "entropy_change_every=0", "methods={grpo: {preset: grpo}}")


@pytest.mark.parametrize(
    ("update", "shares"),
    [
        (UpdateRecipe(), [1, 1, 1, 1, 1, 1]),
        (UpdateRecipe(lr_warmup=3), [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        (UpdateRecipe(lr_schedule="linear"), [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (UpdateRecipe(lr_schedule="linear", lr_warmup=2), [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        (
            UpdateRecipe(lr_schedule="linear", lr_decay_steps=4, lr_final=0.2),
            [1, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        (
            UpdateRecipe(lr_schedule="cosine", lr_final=0.1),
            [0.1 + 0.45 * (1 + math.cos(math.pi * i / 6)) for i in range(6)],
        ),
    ],
)
def test_shares_of_a_run_of_six_steps(update: UpdateRecipe, shares: list[float]) -> None:
    assert [share_of(update, 6, step) for step in range(6)] == pytest.approx(shares, abs=1e-12)


def test_every_group_has_its_share() -> None:
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.25}]
    optimizer = torch.optim.AdamW(groups)
    schedule = make_schedule(optimizer, UpdateRecipe(lr_schedule="linear"), 2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]


def test_a_resumed_run_has_the_rates_of_one_never_stopped(tmp_path: Path) -> None:
    """Bit for bit: metrics, weights, and the position of the schedule."""
    options = (*ONE, "update.lr_warmup=2", "update.lr_schedule=cosine", "update.lr_decay_steps=5")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_recipe(tmp_path, *options, "steps=6"), whole) == 0
    assert run(tiny_recipe(tmp_path, *options, "steps=3"), parts) == 0
    assert run(tiny_recipe(tmp_path, *options, "steps=6"), parts, resume=True) == 0
    rates = [row["actor/lr"] for row in metrics.read(whole / "grpo" / "metrics.jsonl")]
    assert rates == pytest.approx([0.001, 0.002, 0.003, 0.00225, 0.00075, 0.0])
    for key in ("actor/lr", "reward", "entropy", "grad_norm"):
        once, twice = (
            metrics.column(metrics.read(out / "grpo" / "metrics.jsonl"), key)
            for out in (whole, parts)
        )
        assert once == twice
    first, second = (checkpoint.latest(out / "grpo") for out in (whole, parts))
    assert first is not None and second is not None
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_a_rate_of_zero_changes_nothing(tmp_path: Path) -> None:
    """The step at lr_final = 0 leaves the weights of the step before."""
    falls = ("update.lr_schedule=linear", "update.lr_decay_steps=1")
    assert run(tiny_recipe(tmp_path, *ONE, *falls, "steps=2", "checkpoint_every=1"), tmp_path) == 0
    after, before = checkpoint.newest_first(tmp_path / "grpo")
    assert before != after
    file = "model.safetensors"
    assert (before / file).read_bytes() == (after / file).read_bytes()


def test_the_last_step_is_fixed_where_rates_fall_until_then(tmp_path: Path) -> None:
    out, falls = tmp_path / "run", (*ONE, "update.lr_schedule=linear")
    assert run(tiny_recipe(tmp_path, *falls, "steps=1"), out) == 0
    with pytest.raises(ValueError, match="steps: 1 before, 2 now"):
        run(tiny_recipe(tmp_path, *falls, "steps=2"), out, resume=True)
    assert run(tiny_recipe(tmp_path, *falls, "steps=1", "show_answers=1"), out, resume=True) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.lr_warmup=-1"], "'update.lr_warmup' must be at least 0, got -1"),
        (["update.lr_schedule=step"], "'update.lr_schedule' must be one of 'constant', 'linear'"),
        (["update.lr_final=0.1"], r"'update.lr_final' needs update.lr_schedule=linear or cosine"),
        (["update.lr_decay_steps=9"], "'update.lr_decay_steps' needs update.lr_schedule=linear"),
        (
            ["update.lr_schedule=linear", "update.lr_final=1.5"],
            r"'update.lr_final' must be in \[0, 1\], got 1.5",
        ),
        (
            ["update.lr_schedule=linear", "update.lr_warmup=3", "update.lr_decay_steps=3"],
            "'update.lr_decay_steps' must be at least 4, got 3",
        ),
        (
            ["update.lr_schedule=cosine", "update.lr_warmup=4"],
            "'update.lr_warmup' must be below steps = 4 with update.lr_schedule=cosine, got 4",
        ),
    ],
)
def test_errors_name_the_key(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, *overrides)
