"""A run that is killed at any moment goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from logitless.rl.tracking import metrics
from tests.support.paths import ROOT
from tests.support.recipes import TINY
from tests.support.rl.runs_alike import assert_same

KILLS = 20
SMALL = {
    "steps": 3,
    "checkpoint_every": 1,
    "compare_repeats": 0,
    "warmup": {"steps": 10, "batch": 16, "examples": 64, "full_steps": 1},
    "evaluation": {"every": 2, "prompts": 2, "group": 2},
}


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(TINY | SMALL), "utf-8")
    command = [sys.executable, "-m", "tests.support.workers.rl.killed_runs"]
    done = subprocess.run(
        [*command, str(recipe), str(tmp_path), str(KILLS)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["kills"]) == KILLS, found
    whole, methods = tmp_path / "whole", list(TINY["methods"])
    assert all(len(metrics.read(whole / name / metrics.FILE)) == 3 for name in methods)
    expected = json.loads((whole / "summary.json").read_text("utf-8"))
    for number in range(found["runs"]):
        out = tmp_path / f"run{number}"
        assert_same(out, whole, methods)
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        assert all(
            summary[name]["reward_last"] == expected[name]["reward_last"] for name in methods
        )
        assert "stopped before its end" not in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_is_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, *({"step": step, "reward": 0.5} for step in range(4)))
    file.write_bytes(file.read_bytes()[:-cut])
    left = 3 if cut < 40 else 2
    assert [row["step"] for row in metrics.read(file)] == list(range(left))
    assert metrics.keep_before(file, 9) == [{"step": i, "reward": 0.5} for i in range(left)]
    metrics.append(file, {"step": left})
    assert [row["step"] for row in metrics.read(file)] == list(range(left + 1))
    assert [row["step"] for row in metrics.keep_before(file, 1)] == [0]
    assert len(file.read_text("utf-8").splitlines()) == 1
