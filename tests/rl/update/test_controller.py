"""Losses of the trainer whose coefficient follows the entropy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import logitless as ll  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

# one optimizer step a step: its entropy is the rollout's
ONE = ("compare_repeats=0", "entropy_change_every=0", "update.minibatches=1")
PI = {
    "preset": "entropic",
    # nothing that a toy says is likely
    "change": {"control": {"threshold": 0.01}},
    "controller": {"kind": "pi", "options": {"target": 1.4, "ki": 0.1}},
}
BONUS = {
    "preset": "grpo",
    "change": {"entropy": {"coefficient": 0.01}},
    "controller": {"kind": "step", "options": {"target": 9.0}},
}
REPO = {"preset": "repo_r", "controller": {"kind": "repo", "options": {"target": 9.0}}}


def rows_of(folder: Path, method: dict[str, Any], *options: str, **how: bool) -> list[Any]:
    methods = json.dumps({"own": method})
    assert (
        run(tiny_recipe(folder, *ONE, f"methods={methods}", *options), folder / "run", **how) == 0
    )
    return metrics.read(folder / "run" / "own" / metrics.FILE)


@pytest.mark.parametrize(
    ("method", "controller"),
    [
        (PI, ll.PIController(1.4, ki=0.1)),
        (BONUS, ll.StepController(9.0)),
        (REPO, ll.RepoController(9.0)),
    ],
)
def test_the_number_is_the_controllers(
    tmp_path: Path, method: dict[str, Any], controller: Any
) -> None:
    rows = rows_of(tmp_path, method, "steps=3")
    for row in rows:
        expected = controller.update(row["entropy"])
        assert row["actor/controlled"] == pytest.approx(expected, rel=1e-5)
    # and the loss has it: without a controller the run is another one
    alone = {key: value for key, value in method.items() if key != "controller"}
    (tmp_path / "alone").mkdir()
    others = rows_of(tmp_path / "alone", alone, "steps=3")
    assert "actor/controlled" not in others[0]
    assert others[0]["entropy"] == rows[0]["entropy"]
    assert others[2]["entropy"] != rows[2]["entropy"]


def test_an_anchor_is_that_of_the_first_step(tmp_path: Path) -> None:
    change = {"entropy": {"coefficient": 5.0}}
    method = {"preset": "siren", "change": change, "controller": {"kind": "anchor"}}
    rows = rows_of(tmp_path, method, "steps=3", "update.body_lr=1e-3")
    anchors = {row["actor/controlled"] for row in rows}
    assert len(anchors) == 1
    # the mean of an answer's least certain fifth is above the mean of its tokens
    assert rows[0]["entropy"] < anchors.pop() < 8.0
    (tmp_path / "alone").mkdir()
    del method["controller"]
    others = rows_of(tmp_path / "alone", method, "steps=3", "update.body_lr=1e-3")
    # nothing is held in the first step
    assert others[0]["grad_norm"] == rows[0]["grad_norm"]
    assert others[1]["grad_norm"] != rows[1]["grad_norm"]


def test_a_controller_goes_on_where_it_was(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    expected = [row["actor/controlled"] for row in rows_of(once, PI, "steps=4")]
    rows_of(twice, PI, "steps=2")
    rows = rows_of(twice, PI, "steps=4", resume=True)
    assert [row["actor/controlled"] for row in rows] == expected and len(set(expected)) == 4
    saved, other = (checkpoint.latest(folder / "run" / "own") for folder in (once, twice))
    for file in ("controller.json", "model.safetensors"):
        assert (saved / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"preset": "grpo", "controller": {"kind": "pi", "options": {"target": 1.0}}},
            r"'methods\.own\.controller\.kind' is pi, which needs Entropic as the loss's control",
        ),
        (
            {"preset": "entropic", "controller": {"kind": "pi"}},
            r"'methods\.own\.controller\.options': .*target",
        ),
        (
            {"preset": "entropic", "controller": {"kind": "pi", "options": {"target": -1.0}}},
            r"controller\.options': .*PIController\.target",
        ),
        ({"preset": "siren", "controller": {"kind": "ancor"}}, "controller.kind' must be one of"),
        ({"preset": "siren", "controller": {}}, "controller.kind' is missing"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, method)
    assert not (tmp_path / "run").exists()
