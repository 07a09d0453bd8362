"""A run on a device beside the same run on the CPU: its curves."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from logitless.rl.demo.job import run
from tests.support.device.devices import Device
from tests.support.device.draws import drawing_there
from tests.support.recipes import tiny_recipe

# The largest difference of two curves over so many steps, as a share of the largest value. A step
# starts where the one before has ended, so that roundings grow.
STEPS, BOUND = 4, 1e-3
CURVES = ("reward", "entropy", "grad_norm", "covariance", "actor/pg_loss", "critic/advantages/max")
# Exact gradients, gradients from the largest entries, and draws under top-p.
WAYS = ("update.tail_mass=0", "update.tail_mass=0.01", "rollout.top_p=0.9")


def curves(folder: Path, where: Device, monkeypatch: pytest.MonkeyPatch, way: str) -> Any:
    """method -> its rows."""
    there = "cpu" if where.name == "cpu" else "cuda"
    recipe = tiny_recipe(
        folder, f"steps={STEPS}", "compare_repeats=0", "warmup.steps=20",
        f"model.device={there}", way,
    )  # fmt: skip
    monkeypatch.setenv("LOGITLESS_BACKEND", where.backend)
    with nullcontext() if where.backend == "cpu" else drawing_there(where):
        assert run(recipe, folder / where.backend) == 0
    files = {name: folder / where.backend / name / "metrics.jsonl" for name in recipe.methods}
    return {
        name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for name, path in files.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_curves_are_the_cpus(
    device: Device, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = curves(tmp_path, device, monkeypatch, way)
    # or the losses of a stand-in would be those of its tensors on the CPU too
    monkeypatch.undo()
    right = curves(tmp_path, Device("cpu", "cpu"), monkeypatch, way)
    for method, rows in right.items():
        for name in CURVES:
            a, b = ([row[name] for row in run[method]] for run in (ours, right))
            size = max(map(abs, b))
            assert len(a) == len(rows) == STEPS and size > 0
            for x, y in zip(a, b, strict=True):
                assert math.isclose(x, y, rel_tol=0, abs_tol=BOUND * size), (method, name, a, b)
