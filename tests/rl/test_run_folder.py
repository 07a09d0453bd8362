"""Nothing of a run is lost unasked, and a resumed run is the run that was started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from logitless.rl.demo.job import run
from logitless.rl.recipe import Recipe
from logitless.rl.tracking import metrics, run_folder
from tests.support.recipes import tiny_recipe

ONE = ("steps=1", "compare_repeats=0", "methods={grpo: {preset: grpo}}")


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A folder with a run that somebody may want to keep, and a file of the user's."""
    out = tmp_path / "run"
    (out / "grpo" / "checkpoint-000099").mkdir(parents=True)
    metrics.append(out / "grpo" / "metrics.jsonl", {"step": 98})
    (out / "grpo" / "notes.txt").write_text("mine", "utf-8")
    (out / "old_method").mkdir()
    metrics.append(out / "old_method" / "metrics.jsonl", {"step": 0})
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != run_folder.LOCK_FILE
    }


def test_a_run_is_not_deleted_unasked(held: Path, tmp_path: Path) -> None:
    before = files(held)
    message = r"holds a run \(grpo, old_method\): pass --resume .* --overwrite .* or another --out"
    with pytest.raises(ValueError, match=message):
        run(tiny_recipe(tmp_path, *ONE), held)
    assert files(held) == before


def test_overwrite_deletes_runs_and_nothing_else(held: Path, tmp_path: Path) -> None:
    assert run(tiny_recipe(tmp_path, *ONE), held, overwrite=True) == 0
    assert len(metrics.read(held / "grpo" / "metrics.jsonl")) == 1
    assert [p.name for p in (held / "grpo").glob("checkpoint-*")] == ["checkpoint-000001"]
    assert (held / "grpo" / "notes.txt").read_text("utf-8") == "mine"
    assert run_folder.runs_in(held) == ["grpo", "warmup"]


def test_there_must_be_a_run_to_resume(held: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, *ONE)
    with pytest.raises(ValueError, match=r"needs a run that was started in .* holds no run"):
        run(recipe, tmp_path / "nothing", resume=True)
    with pytest.raises(ValueError, match=r"grpo, old_method without recipe\.json"):
        run(recipe, held, resume=True)
    with pytest.raises(ValueError, match="exclude each other"):
        run(recipe, held, resume=True, overwrite=True)


def test_a_changed_recipe_is_not_resumed(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", tiny_recipe(tmp_path, *ONE)
    assert run(recipe, out) == 0
    changed = tiny_recipe(tmp_path, *ONE, "update.body_lr=1e-4", "rollout.group=4", "steps=2")
    before = files(out)
    with pytest.raises(ValueError, match="--resume goes on with the recipe") as caught:
        run(changed, out, resume=True)
    message = str(caught.value)
    assert "update.body_lr: 3e-05 before, 0.0001 now" in message
    assert "rollout.group: 8 before, 4 now" in message
    assert "steps: " not in message
    assert files(out) == before


def test_a_run_of_a_version_without_a_key_goes_on(tmp_path: Path) -> None:
    """With the key's default; what the key is set to now is a change."""
    out, more = tmp_path / "run", (*ONE, "steps=2")
    assert run(tiny_recipe(tmp_path, *ONE), out) == 0
    file = out / "recipe.json"
    record = json.loads(file.read_text("utf-8"))
    del record["recipe"]["update"]["micro_tokens"], record["recipe"]["methods"]["grpo"]["advantage"]
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=r"got update\.micro_tokens: 0 before, 500 now$"):
        run(tiny_recipe(tmp_path, *more, "update.micro_tokens=500"), out, resume=True)
    assert run(tiny_recipe(tmp_path, *more), out, resume=True) == 0
    # and where a key is no more, that is said
    record["recipe"]["update"]["no_more"] = 1
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=r"update\.no_more: 1 before, None now"):
        run(tiny_recipe(tmp_path, *more), out, resume=True)


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", tiny_recipe(tmp_path, *ONE)
    assert run(recipe, out) == 0
    more = tiny_recipe(tmp_path, "steps=2", "compare_repeats=0", "checkpoint_every=1", "notes=[hm]")
    assert set(more.methods) == {"grpo", "clip_cov"}
    assert run(more, out, resume=True) == 0
    for name in more.methods:
        assert [row["step"] for row in metrics.read(out / name / "metrics.jsonl")] == [0, 1]


def test_the_folder_says_what_was_started(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", tiny_recipe(tmp_path, *ONE)
    assert run(recipe, out) == 0
    record = json.loads((out / "recipe.json").read_text("utf-8"))
    assert record["recipe"]["methods"]["grpo"]["preset"] == "grpo"
    assert {"started", "command", "versions", "machine"} <= set(record)


HOLD = """
import sys
from pathlib import Path
from logitless.rl.tracking import run_folder
with run_folder.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_writes_to_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {process.pid} on"),
            run_folder.locked(tmp_path),
        ):
            pass
        process.kill()
    # a killed process holds nothing
    with run_folder.locked(tmp_path):
        owner = (tmp_path / "run.lock").read_text("utf-8")
        assert owner == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert (tmp_path / "run.lock").read_text("utf-8") == ""


def test_a_lock_of_another_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("process 7 on elsewhere\n", "utf-8")
    with (
        pytest.raises(ValueError, match=r"in use by process 7 on elsewhere; .* delete .*run\.lock"),
        run_folder.locked(tmp_path),
    ):
        pass


def test_a_method_is_not_called_like_the_warm_up(tmp_path: Path) -> None:
    recipe: Recipe = tiny_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"'methods\.warmup': a method is also a folder's name"):
        replace(recipe, methods={"warmup": recipe.methods["grpo"]})
