"""What a run keeps of its checkpoints, and how it was started."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from logitless.cli import main
from logitless.rl.demo.job import run
from logitless.rl.policy import load_policy, make_tokenizer
from logitless.rl.tracking import checkpoint, origin, run_folder
from tests.support.recipes import tiny_recipe

ONE = ("compare_repeats=0", "checkpoint_every=1", "methods={grpo: {preset: grpo}}")
COLD = ("warmup.steps=0", "warmup.full_steps=0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    assert (
        run(tiny_recipe(folder, *ONE, *COLD, "steps=4", "checkpoint_keep=3"), folder / "run") == 0
    )
    return folder / "run" / "grpo"


def test_the_newest_are_kept(whole: Path, tmp_path: Path) -> None:
    names = [path.name for path in checkpoint.newest_first(whole)]
    assert names == ["checkpoint-000004", "checkpoint-000003", "checkpoint-000002"]
    assert not list(whole.glob("*.part"))
    with pytest.raises(ValueError, match="'checkpoint_keep' must be at least 1, got 0"):
        tiny_recipe(tmp_path, "checkpoint_keep=0")


def test_a_resumed_run_may_keep_fewer(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.parent, tmp_path / "run"))
    options = (*ONE, *COLD, "steps=5", "checkpoint_keep=1")
    assert run(tiny_recipe(tmp_path, *options), out, resume=True) == 0
    assert [path.name for path in checkpoint.newest_first(out / "grpo")] == ["checkpoint-000005"]


def test_the_tokenizer_is_written_once_and_every_checkpoint_has_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = [path for path in (whole / "tokenizer").rglob("*") if path.is_file()]
    assert "tokenizer.json" in {path.name for path in written}
    for saved in checkpoint.newest_first(whole):
        for path in written:
            assert path.samefile(saved / path.relative_to(whole / "tokenizer"))
    saved = checkpoint.newest_first(whole)[0]
    # a copy needs nothing beside it
    alone = Path(shutil.copytree(saved, tmp_path / "alone"))
    policy = load_policy(alone)
    assert policy.tokenizer.get_vocab() == make_tokenizer("bytes").get_vocab()
    for folder in (whole, saved, alone):
        assert main(["sample", str(folder), "sum 8:", "-n", "2", "--max-new-tokens", "2"]) == 0
    assert main(["eval", str(whole), "evaluation.prompts=2", "evaluation.group=2"]) == 0
    capsys.readouterr()


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    made: list[Path] = []

    def write(folder: Path) -> None:
        made.append(folder)
        (folder / "more").mkdir()
        (folder / "more" / "words.txt").write_text("words", "utf-8")

    monkeypatch.setattr(os, "link", no_links)
    for step in (1, 2):
        part = checkpoint.begin(tmp_path, step)
        checkpoint.link_tokenizer(part, write)
        saved = checkpoint.finish(part, keep=2)
        assert (saved / "more" / "words.txt").read_text("utf-8") == "words"
    assert len(made) == 1


def test_what_a_kill_has_left_is_removed(tmp_path: Path) -> None:
    for name in ("checkpoint-000001.part", "tokenizer.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x", "utf-8")
    part = checkpoint.begin(tmp_path, 2)
    checkpoint.link_tokenizer(part, lambda folder: (folder / "whole").touch())
    saved = checkpoint.finish(part, keep=2)
    assert [path.name for path in saved.iterdir()] == ["whole"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-000002", "tokenizer"}


def test_the_first_start_stays_and_each_resumed_one_is_added(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole.parent, tmp_path / "run"))
    (first,) = run_folder.starts_in(out)
    assert {"started", "command", "versions", "commit", "machine"} == set(first)
    assert {"logitless", "python", "torch", "transformers"} <= set(first["versions"])
    options = (*ONE, *COLD, "steps=5", "checkpoint_keep=3")
    for steps, changed in ((5, {"steps": {"before": 4, "now": 5}}), (5, {})):
        monkeypatch.setattr(sys, "argv", ["logitless", f"steps={steps}"])
        assert run(tiny_recipe(tmp_path, *options), out, resume=True) == 0
        *_, last = starts = run_folder.starts_in(out)
        assert last["changed"] == changed and last["command"] == ["logitless", "steps=5"]
        assert starts[0] == first
    assert len(starts) == 3 and run_folder.recipe_in(out)["steps"] == 5  # type: ignore[index]
    assert json.loads((out / "run.json").read_text("utf-8"))["starts"] == starts


def test_the_commit_is_that_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert origin.commit() is None

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@x")
        done = subprocess.run(["git", *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert origin.commit() is None
    (tmp_path / "a").write_text("1", "utf-8")
    git("add", "a")
    git("commit", "-qm", "a")
    head = git("rev-parse", "HEAD")
    assert origin.commit() == head
    (tmp_path / "b").write_text("1", "utf-8")
    assert origin.commit() == head
    (tmp_path / "a").write_text("2", "utf-8")
    assert origin.commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert origin.commit() is None
