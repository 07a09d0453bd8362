"""An error of a user's own code: their traceback, whole, and a line of ours after it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.cli import main
from tests.support.recipes import tiny_file

HELPER = """
def deep(value):
    raise ValueError(f"the user's own words about {value}")
"""
TASK = """
import random
from helper_of_errors import deep
from logitless.rl.tasks import Prompt

class Makes:
    def __init__(self, size=1):
        deep("making")

class Draws:
    def prompts(self, rng, n):
        return deep("prompts")

    def reward(self, prompt, completion):
        return 0.0

class Rewards(Draws):
    def prompts(self, rng, n):
        return [Prompt("sum 8:")] * n

    def reward(self, prompt, completion):
        return deep("an answer")

class Solves(Rewards):
    def solution(self, rng, prompt):
        return deep("a solution")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "helper_of_errors.py").write_text(HELPER, "utf-8")
    (tmp_path / "task_of_errors.py").write_text(TASK, "utf-8")
    monkeypatch.chdir(tmp_path)
    # another test's are of another folder
    for name in ("helper_of_errors", "task_of_errors", "own_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def train(folder: Path, *changes: str) -> int:
    return main(
        [
            "train",
            str(tiny_file(folder)),
            "steps=1",
            "compare_repeats=0",
            "warmup.steps=0",
            "warmup.full_steps=0",
            "task.options={}",
            *changes,
            "--out",
            str(folder / "run"),
        ]
    )


@pytest.mark.parametrize(
    ("task", "words", "ours"),
    [
        ("Makes", "making", "making task 'task_of_errors.py:Makes' has failed: ValueError: the"),
        ("Draws", "prompts", "prompts(rng, n) of the task has failed: ValueError: the user's own"),
        ("Rewards", "an answer", "none of 4 prompts could be scored: ValueError: the user's own"),
    ],
)
def test_the_users_traceback_is_whole(
    folder: Path, capsys: pytest.CaptureFixture[str], task: str, words: str, ours: str
) -> None:
    assert train(folder, f"task.name=task_of_errors.py:{task}") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    *lines, said, last = printed.rstrip("\n").split("\n")
    assert said == f"ValueError: the user's own words about {words}"
    assert last.startswith(f"logitless: {ours}")
    files = [line for line in lines if line.startswith("  File ")]
    # of both of the user's files, and none of ours
    assert len(files) == 2
    assert f'"{folder / "task_of_errors.py"}"' in files[0] and f"in {method(task)}" in files[0]
    assert f'"{folder / "helper_of_errors.py"}"' in files[1] and "in deep" in files[1]


def method(task: str) -> str:
    return {"Makes": "__init__", "Draws": "prompts", "Rewards": "reward"}[task]


def test_a_solution_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("task.name=task_of_errors.py:Solves", "warmup.steps=1")
    assert train(folder, *changes) == 1
    assert "logitless: solution(rng, prompt) of the task has failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("raise OSError('a file of theirs')", "OSError: a file of theirs"),
        ("import a_package_they_lack", "No module named 'a_package_they_lack'"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("def score(:", "SyntaxError: "),
    ],
)
@pytest.mark.parametrize("name", ["own_module.py:score", "own_module:score"])
def test_errors_of_an_import(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, code: str, ending: str
) -> None:
    (folder / "own_module.py").write_text(code, "utf-8")
    assert train(folder, f"task.name={name}") == 1
    printed = capsys.readouterr().err
    assert str(folder / "own_module.py") in printed and ending in printed
    assert printed.rstrip("\n").split("\n")[-1].startswith("logitless: importing own_module")
    assert "user_code.py" not in printed and "frozen importlib" not in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["task.name=not_there.py:Task"], "no such file: not_there.py"),
        (["task.name=not_there:Task"], "No module named 'not_there'"),
        (["task.name=task_of_errors.py:Absent"], "names nothing in task_of_errors.py"),
        (
            ["task.name=task_of_errors.py:Makes", "task.options={width: 3}"],
            "unexpected keyword argument 'width'",
        ),
        (["update.body_lr=-1"], "recipe key 'update.body_lr' must be at least 0"),
    ],
)
def test_our_own_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert train(folder, *changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("logitless: ") and message in line
