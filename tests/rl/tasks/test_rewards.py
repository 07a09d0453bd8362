"""Several rewards of an answer: a column each, and their weighted sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.cli import main
from logitless.rl.recipe import RewardRecipe
from logitless.rl.tasks import Prompt, Task, TaskWithSolutions, load_task, score
from logitless.rl.tracking import completions, metrics
from tests.support.recipes import tiny_file, tiny_recipe

CODE = """
def right(prompt, completion, total):
    return 1.0 if completion == str(total) else 0.25

def short(prompt, completion, answer_tokens, most=3, **row):
    return float(answer_tokens <= most)

def both(prompt, completion, of, **row):
    return of[0] * 10 + of[1]

def broken(prompt, completion, **row):
    return 1 / len(completion)

def all_at_once(prompts, completions, rows, answer_tokens, most):
    return [float(n <= most) + 0 * row["total"] for n, row in zip(answer_tokens, rows)]

def of_data(prompt, completion, data):
    return float(data)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": f"sum {n}:", "total": n} for n in (8, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "several_rewards.py").write_text(CODE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def mine(name: str, **more: Any) -> RewardRecipe:
    return RewardRecipe(f"several_rewards.py:{name}", **more)


def load(**rewards: RewardRecipe) -> Task:
    return load_task(None, {}, "rows.jsonl", None, rewards)


PROMPTS = [Prompt("sum 8:", {"total": 8}), Prompt("sum 9:", {"total": 9})]
# right and short, wrong and short, right and long, wrong and long
TEXTS, TOKENS = ["8", "1", "9", "xyz"], [2, 3, 4, 5]


def test_the_reward_is_the_weighted_sum(folder: Path) -> None:
    task = load(accuracy=mine("right"), length=mine("short", weight=-0.5))
    found = score(task, PROMPTS, TEXTS, tokens=TOKENS)
    accuracy, length = [[1.0, 0.25], [1.0, 0.25]], [[1.0, 1.0], [0.0, 0.0]]
    assert {name: x.tolist() for name, x in found.columns.items()} == {
        "accuracy": accuracy, "length": length,
    }  # fmt: skip
    assert found.rewards.tolist() == [[0.5, -0.25], [1.0, 0.25]]
    # one of them alone has the sum's threshold
    assert score(task, PROMPTS, TEXTS, 0.5, tokens=TOKENS).rewards.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("function", ["short", "all_at_once"])
def test_options_are_arguments(folder: Path, function: str) -> None:
    task = load(length=mine(function, options={"most": 4}))
    assert score(task, PROMPTS, TEXTS, tokens=TOKENS).rewards.tolist() == [[1, 1], [1, 0]]


def test_a_column_has_its_threshold_and_may_read_those_above(folder: Path) -> None:
    task = load(
        accuracy=mine("right", threshold=1.0),
        length=mine("short", weight=0.0),
        both=mine("both", of=["accuracy", "length"], weight=2.0),
    )
    found = score(task, PROMPTS, TEXTS, tokens=TOKENS)
    assert found.columns["accuracy"].tolist() == [[1, 0], [1, 0]]
    assert found.columns["both"].tolist() == [[11, 1], [10, 0]]
    assert found.rewards.tolist() == [[23, 2], [21, 0]]


def test_an_error_of_a_column_costs_the_prompt(folder: Path) -> None:
    task = load(
        accuracy=mine("right"),
        broken=mine("broken", weight=0.0),
        both=mine("both", of=["accuracy", "broken"]),
    )
    found = score(task, PROMPTS, ["8", "", "9", "1"])
    assert found.scored.tolist() == [False, True]
    (failure,) = found.failures
    assert failure.startswith("ZeroDivisionError") and "several_rewards.py:" in failure
    assert [column.shape for column in found.of_prompts(found.scored).columns.values()] == [
        (1, 2)
    ] * 3


def test_a_named_task_has_its_own_reward_among_others(folder: Path) -> None:
    rewards = {"own": RewardRecipe("task"), "data": mine("of_data", weight=0.01)}
    task = load_task("sum_to_n", {"low": 8, "high": 8, "digits": 2}, rewards=rewards)
    found = score(task, [Prompt("sum 8:", 8)], ["35", "36"])
    torch.testing.assert_close(found.rewards, torch.tensor([[1.08, 0.08]]))
    # a warm-up goes by this
    assert isinstance(task, TaskWithSolutions)
    assert not isinstance(load(accuracy=mine("right")), TaskWithSolutions)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"a": mine("both")}, r"task\.rewards\.a\.function '.*:both': of must name other rewards"),
        ({"a": mine("right"), "b": mine("short", of=["a"])}, "of must name other rewards"),
        ({"b": mine("both", of=["a"])}, r"'task\.rewards\.b\.of' must name .* got 'a' with none"),
        ({"a": mine("of_data", options={"most": 1})}, "options have 'most', which it cannot be"),
        ({"a": RewardRecipe("task")}, r"'task\.rewards\.a\.function' can be 'task' for a task"),
        ({"a": RewardRecipe("formt")}, "'formt' is unknown; did you mean 'format'?"),
    ],
)
def test_mistakes_are_named(folder: Path, rewards: dict[str, RewardRecipe], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**rewards)


def test_a_key_of_the_row_is_not_lost_to_an_option(folder: Path) -> None:
    task = load(accuracy=mine("right", options={"total": 8}))
    found = score(task, PROMPTS[:1], ["8", "9"])
    assert "the key 'total' comes twice" in found.failures[0]
    assert "several_rewards.py:" in found.failures[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.rewards.a/b.function=format", r"'task\.rewards\.a/b': a reward is also a column"),
        ("task.rewards.a.weight=.inf", r"'task\.rewards\.a\.function' is missing"),
        ("task.rewards.a={function: format, weight: .inf}", r"a\.weight' must be finite, got inf"),
        ("task={reward: format, rewards: {a: {function: format}}}", "one in place of the other"),
        ("task.reward_timeout=0", r"'task\.reward_timeout' must be above 0, got 0"),
    ],
)
def test_the_recipe_says_what_is_wrong(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, change)


def test_a_run_logs_a_column_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In training and in evaluations, which the command and the report show as well."""
    rewards = (
        "{accuracy: {function: 'several_rewards.py:right'}, "
        "length: {function: 'several_rewards.py:short', weight: 0.125}}"
    )
    command = [
        "train", str(tiny_file(folder)), "steps=2", "compare_repeats=0", "warmup.steps=0",
        "warmup.full_steps=0", "task={prompts: rows.jsonl}", f"task.rewards={rewards}",
        "task.reward_timeout=60", "methods={grpo: {preset: grpo}}", "--out", "run",
        "evaluation={every: 2, prompts: 2, group: 4}",
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    for row in metrics.read(folder / "run" / "grpo" / metrics.FILE):
        assert row["reward"] == pytest.approx(row["reward/accuracy"] + row["reward/length"] / 8)
        assert row["reward_std/length"] >= 0.0
    start, last = metrics.read(folder / "run" / "grpo" / metrics.EVALUATION_FILE)
    for row in (start, last):
        for key in ("reward", "greedy_reward"):
            columns = row[f"{key}/accuracy"] + row[f"{key}/length"] / 8
            assert row[key] == pytest.approx(columns)
        assert {"reward_std", "reward_std/accuracy", "reward_std/length"} <= row.keys()
        assert "greedy_reward_std" not in row
    report = (folder / "run" / "report.html").read_text("utf-8")
    assert "rewards, before their weights" in report and ">accuracy<" in report
    assert report.count("<h3>Reward: length</h3>") == 2
    cells = [f"{x['reward/length']:.3f} ± {x['reward_std/length']:.3f}" for x in (start, last)]
    assert "evaluation, before their weights" in report and " → ".join(cells) in report
    capsys.readouterr()
    assert main(["eval", "run"]) == 0
    told = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    for key in ("reward/length", "reward_std/accuracy", "greedy_reward/length"):
        assert told[key] == f"{last[key]:.4g}"
    lines = metrics.read(folder / "run" / "grpo" / completions.FILE)
    assert len(lines) == 2 * 4 * 8
    for line in lines:
        assert line["reward/length"] == float(line["tokens"] <= 3)
        assert line["reward"] == line["reward/accuracy"] + line["reward/length"] / 8
