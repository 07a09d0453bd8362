"""A task of a user's own: a file of prompts and a function."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from logitless.cli import main
from logitless.rl.policy import make_policy
from logitless.rl.tasks import Prompt, Task, check_any, load_task, score
from logitless.rl.tracking import metrics
from tests.support.recipes import tiny_file, tiny_recipe

ROWS: list[dict[str, Any]] = [
    {"prompt": "sum 8:", "total": 8},
    {"prompt": "sum 9:", "total": 9, "note": "another key"},
    {"prompt": [{"role": "user", "content": "sum 10:"}], "total": 10},
]
CODE = """
import helper_of_mine

def score(prompt, completion, total, **others):
    return helper_of_mine.ONE if completion == str(total) else len(completion) / 100

def scores(prompts, completions, rows):
    return [score(p, c, **row) for p, c, row in zip(prompts, completions, rows)]

def broken(prompts, completions, rows):
    return [1.0]

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", "utf-8")
    (tmp_path / "judge_of_mine.py").write_text(CODE, "utf-8")
    (tmp_path / "helper_of_mine.py").write_text("ONE = 1.0\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def load(reward: str = "judge_of_mine.py:score", prompts: str = "rows.jsonl") -> Task:
    return load_task(None, {}, prompts, reward)


def test_rows_are_prompts_and_reach_the_function(folder: Path) -> None:
    task = load()
    drawn = task.prompts(random.Random(0), 3)
    assert sorted(prompt.data["total"] for prompt in drawn) == [8, 9, 10]
    assert task.reward(Prompt("sum 8:", {"total": 8}), "8") == 1.0
    assert task.reward(Prompt("sum 8:", {"total": 8, "note": ""}), "123") == 0.03


def test_all_rows_are_asked_equally_often(folder: Path) -> None:
    task = load()
    drawn = Counter(prompt.data["total"] for prompt in task.prompts(random.Random(0), 8))
    assert sorted(drawn.values()) == [2, 3, 3]
    assert task.prompts(random.Random(1), 8) == task.prompts(random.Random(1), 8)


@pytest.mark.parametrize("name", ["judge_of_mine.py:scores", "judge_of_mine:scores"])
def test_a_function_of_all_answers(folder: Path, name: str) -> None:
    prompts = [Prompt("sum 8:", {"total": 8}), Prompt("sum 9:", {"total": 9})]
    found = score(load(name), prompts, ["8", "1", "xyz", "9"])
    assert found.rewards.tolist() == [[1.0, pytest.approx(0.01)], [pytest.approx(0.03), 1.0]]


def test_rewards_that_are_too_few_are_none(folder: Path) -> None:
    prompts = [Prompt("sum 8:", {"total": 8})]
    with pytest.raises(RuntimeError, match="must be 2, one an answer, got 1"):
        check_any(score(load("judge_of_mine.py:broken"), prompts, ["8", "9"]))


@pytest.mark.parametrize(
    ("reward", "prompts", "error", "message"),
    [
        ("judge_of_mine.py:absent", "rows.jsonl", ValueError, "names nothing in judge_of_mine"),
        ("judge_of_mine.py:NUMBER", "rows.jsonl", ValueError, "must be a function, got 3"),
        ("judge_of_mine.py", "rows.jsonl", ValueError, "must be 'module:name' or 'file"),
        ("absent.py:score", "rows.jsonl", FileNotFoundError, "task.reward: no such file"),
        ("judge_of_mine.py:score", "no.jsonl", FileNotFoundError, "task.prompts: no such file"),
        ("judge_of_mine.py:score", "bad.jsonl", ValueError, r"bad\.jsonl:2 must be a JSON object"),
        ("judge_of_mine.py:score", "odd.jsonl", ValueError, r"odd\.jsonl:1 must have a prompt"),
        ("judge_of_mine.py:score", "empty.jsonl", ValueError, "at least one row, got none"),
    ],
)
def test_mistakes_are_named(
    folder: Path, reward: str, prompts: str, error: type[Exception], message: str
) -> None:
    (folder / "bad.jsonl").write_text(json.dumps(ROWS[0]) + "\n{no json\n", "utf-8")
    (folder / "odd.jsonl").write_text('{"question": "sum 8:"}\n', "utf-8")
    (folder / "empty.jsonl").write_text("\n", "utf-8")
    with pytest.raises(error, match=message):
        load(reward, prompts)


def test_a_task_is_named_in_one_way(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"go together, or .*; got task\.prompts=rows\.jsonl, task\.reward=None"
    ):
        load_task(None, {}, "rows.jsonl")
    with pytest.raises(ValueError, match=r"make no sense with task\.prompts=rows\.jsonl"):
        load_task("sum_to_n", {}, "rows.jsonl", "judge_of_mine.py:score")


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    policy = make_policy(tiny_recipe(tmp_path).model, 0)
    messages = ROWS[2]["prompt"]
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        policy.encode([messages])
    policy.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<answer>{% endif %}"
    )
    as_text = "<user>sum 10:<answer>"
    plain = policy.encode([as_text, "sum 8:"])
    assert policy.encode([messages, "sum 8:"]) == plain
    assert policy.encode(["sum 10:"], chat_template=True) == plain[:1]


def test_a_run_with_a_file_and_a_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\n".join(json.dumps(row) for row in ROWS[:2])
    (folder / "texts.jsonl").write_text(rows, "utf-8")
    command = [
        "train", str(tiny_file(folder)), "steps=1", "compare_repeats=0", "warmup.steps=0",
        "warmup.full_steps=0", "task={prompts: texts.jsonl, reward: 'judge_of_mine.py:score'}",
        "methods={grpo: {preset: grpo}}", "--out", "run",
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    (row,) = metrics.read(folder / "run" / "grpo" / "metrics.jsonl")
    assert 0 < row["reward"] < 1 and row["skipped_prompts"] == 0
