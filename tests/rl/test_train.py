"""Runs as a whole: what they leave, resuming, stopping, diverging."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from logitless import cli
from logitless.rl.demo.job import run
from logitless.rl.recipe import LossRecipe
from logitless.rl.tracking import checkpoint, metrics
from tests.support.recipes import tiny_file, tiny_recipe
from tests.support.rl.runs_alike import timeless

SUMMARY_KEYS = {
    "reward_first", "reward_last", "entropy_first", "entropy_last", "distinct_right_answers_last",
    "law", "selected_tokens", "seconds", "peak_memory_bytes", "head_memory_bytes",
    "full_logits_bytes", "rewards",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run of 8 steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(tiny_recipe(folder, "steps=8"), folder / "run") == 0
    return folder / "run"


def test_a_run_leaves_everything_it_promises(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text("utf-8"))
    assert set(summary) == {"grpo", "clip_cov"}
    for name, numbers in summary.items():
        rows = metrics.read(whole / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(8))
        assert set(numbers) == SUMMARY_KEYS
        assert set(numbers["law"]) == {"a", "b", "ceiling", "r2", "interval"}
        assert numbers["reward_last"] == pytest.approx(sum(row["reward"] for row in rows[3:]) / 5)
        assert numbers["head_memory_bytes"] > 0
        assert 4 * 384 * 32 <= 2 * numbers["full_logits_bytes"] <= 4 * 384 * 32 * 4
        assert max(row["logp_gap"] for row in rows) < 1e-4
        answers = metrics.read(whole / name / "completions.jsonl")
        assert len(answers) == 8 * 4 * 8
        of_last = [row["reward"] for row in answers if row["step"] == 7]
        assert rows[7]["reward"] == pytest.approx(sum(of_last) / 32)
        # Steps 0, 2, 4, 6 were probed, and the measured change is near the predicted one.
        assert [row["step"] for row in rows if "entropy_change" in row] == [0, 2, 4, 6]
    assert summary["grpo"]["selected_tokens"] == 0
    assert summary["clip_cov"]["selected_tokens"] > 0
    report = (whole / "report.html").read_text("utf-8")
    # the best and the worst of the first and the last step, of each method
    assert report.count('class="text tokens"') == 2 * 2 * 2
    titles = re.findall(r"<h3>(.*?)</h3>", report)
    assert titles[:3] == ["Reward", "Entropy", "Distinct right answers"]
    assert titles[-3:] == [
        "Reward against exp(entropy)", "Entropy change of an update",
        "Where a step&#39;s time goes",
    ]  # fmt: skip
    assert {"Truncation", "Gradient norm", "Gap between rollout and training"} < set(titles)
    assert report.count("<svg ") == len(titles)
    # tokens that Clip-Cov has selected
    assert 'class="selected"' in report and "A frame is around the tokens" in report
    # of both methods, eight steps
    assert report.count('data-x="1 2 3 4 5 6 7 8"') >= 2 * 10
    assert "http" not in report and not list(whole.glob("*.png"))


def test_the_report_is_written_anew(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that has come half way in its first method, and that has no report yet."""
    out = tmp_path / "run"
    (out / "grpo").mkdir(parents=True)
    shutil.copy(whole / "recipe.json", out)
    half = (whole / "grpo" / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)[:5]
    (out / "grpo" / "metrics.jsonl").write_text("".join(half), "utf-8")
    assert cli.main(["report", str(out)]) == 0
    assert "grpo" in capsys.readouterr().out
    assert set(json.loads((out / "summary.json").read_text("utf-8"))) == {"grpo"}
    assert "has not come to its end" in (out / "report.html").read_text("utf-8")
    # that of a finished run stays as it is, the comparison included
    before = [(whole / name).read_bytes() for name in ("summary.json", "report.html", "run.json")]
    assert cli.main(["report", str(whole)]) == 0
    assert before == [
        (whole / name).read_bytes() for name in ("summary.json", "report.html", "run.json")
    ]
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_both_methods_start_alike(whole: Path) -> None:
    first = [metrics.read(whole / name / "metrics.jsonl")[0] for name in ("grpo", "clip_cov")]
    assert first[0]["reward"] == first[1]["reward"]
    assert first[0]["entropy"] == first[1]["entropy"]


def test_warm_up_teaches_the_task(whole: Path) -> None:
    # Drawn blindly from 384 entries, two right digits and the end token come once in millions.
    assert metrics.read(whole / "grpo" / "metrics.jsonl")[0]["reward"] > 0.1


def test_a_resumed_run_is_the_same_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    # 4 of 8 steps, then two more that were logged but never saved, as a killed run leaves them.
    out = tmp_path / "run"
    assert run(tiny_recipe(tmp_path, "steps=4", "compare_repeats=0"), out) == 0
    log = out / "grpo" / "metrics.jsonl"
    metrics.append(log, {"step": 4, "reward": -1.0})
    metrics.append(log, {"step": 5, "reward": -1.0})
    metrics.append(out / "grpo" / "completions.jsonl", {"step": 4, "completion": "lost"})
    assert run(tiny_recipe(tmp_path, "steps=8", "compare_repeats=0"), out, resume=True) == 0
    for name in ("grpo", "clip_cov"):
        once = metrics.read(whole / name / "metrics.jsonl")
        assert timeless(metrics.read(out / name / "metrics.jsonl")) == timeless(once)
        answers = (metrics.read(folder / name / "completions.jsonl") for folder in (out, whole))
        assert next(answers) == next(answers)
        saved, expected = (checkpoint.latest(folder / name) for folder in (out, whole))
        assert saved is not None
        assert expected is not None
        assert saved.name == "checkpoint-000008"
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (saved / file).read_bytes() == (expected / file).read_bytes()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "run", ("compare_repeats=0", "checkpoint_every=2")
    assert run(tiny_recipe(tmp_path, "steps=6", *options), out) == 0
    kept = [path.name for path in checkpoint.newest_first(out / "grpo")]
    assert kept == ["checkpoint-000006", "checkpoint-000004"]
    file = out / "grpo" / "checkpoint-000006" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert run(tiny_recipe(tmp_path, "steps=8", *options), out, resume=True) == 0
    assert "cannot read" in capsys.readouterr().out
    for name in ("grpo", "clip_cov"):
        once = metrics.read(whole / name / "metrics.jsonl")
        assert timeless(metrics.read(out / name / "metrics.jsonl")) == timeless(once)


def test_where_no_checkpoint_can_be_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(tiny_recipe(tmp_path, "steps=1", "compare_repeats=0"), out) == 0
    (out / "grpo" / "checkpoint-000001" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*checkpoint-000001"):
        run(tiny_recipe(tmp_path, "steps=2", "compare_repeats=0"), out, resume=True)


def test_checkpoints_are_whole_or_absent(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000004").mkdir()
    (tmp_path / "checkpoint-000012.part").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-000004"
    assert checkpoint.step_of(tmp_path / "checkpoint-000004") == 4
    assert checkpoint.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_a_usable_folder(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "logitless.cli", "train", str(tiny_file(tmp_path)),
        "steps=100000", "compare_repeats=0", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = out / "grpo" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while len(metrics.read(log)) < 6 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output.decode()
    assert f"--resume --out {out} goes on" in output.decode()
    rows = metrics.read(log)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert set(summary) == {"grpo"}
    assert "has not come to its end" in (out / "report.html").read_text("utf-8")
    # The step it was in was finished and saved: a resumed run loses nothing.
    saved = checkpoint.latest(out / "grpo")
    assert saved is not None
    assert checkpoint.step_of(saved) == len(rows)


def test_a_method_that_diverges_is_named_and_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    recipe = tiny_recipe(tmp_path, "steps=4", "compare_repeats=0", "checkpoint_every=1")
    # a coefficient that float32 cannot hold, where gradients are scaled by it
    methods = {
        "wild": LossRecipe("ppo", {"entropy": {"coefficient": 1e38}}), "grpo": LossRecipe("grpo")
    }  # fmt: skip
    assert run(replace(recipe, methods=methods), out) == 1
    printed = capsys.readouterr().out
    assert "method 'wild' diverged in step " in printed
    assert len(metrics.read(out / "grpo" / "metrics.jsonl")) == 4
    rows = metrics.read(out / "wild" / "metrics.jsonl")
    saved = checkpoint.latest(out / "wild")
    assert (0 if saved is None else checkpoint.step_of(saved)) == len(rows) < 4
    assert "has not come to its end" in (out / "report.html").read_text("utf-8")


def test_weights_too_large_to_compute_with_are_a_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one of them is a number, but what they make is none."""
    out, rates = tmp_path / "run", ("update.body_lr=1e30", "update.head_lr=1e30")
    recipe = tiny_recipe(tmp_path, *rates, "compare_repeats=0", "checkpoint_every=1")
    assert run(recipe, out) == 1
    printed = capsys.readouterr().out
    for method in ("grpo", "clip_cov"):
        assert re.search(
            rf"method '{method}' diverged in step 1: \S+ is as large as 1e\+30", printed
        )
        assert checkpoint.latest(out / method) is None
    assert "has not come to its end" in (out / "report.html").read_text("utf-8")
