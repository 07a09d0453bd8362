"""Rewards reach the advantages as the task returns them, or not at all."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.rl.demo.job import run
from logitless.rl.tasks import Prompt, RewardError, check_any, score
from logitless.rl.tracking import metrics
from tests.support.recipes import tiny_recipe

PROMPTS = [Prompt("a"), Prompt("b")]


class Judge:
    def __init__(self, judge: Callable[[str], Any]) -> None:
        self.judge = judge

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        return [Prompt("sum 8:")] * n

    def reward(self, prompt: Prompt, completion: str) -> Any:
        return self.judge(completion)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, [[0.01, 3.0], [-1.5, 0.99]]), (0.99, [[0.0, 1.0], [0.0, 1.0]])],
)
def test_rewards_are_the_tasks(threshold: float | None, expected: list[list[float]]) -> None:
    found = score(Judge(float), PROMPTS, ["0.01", "3", "-1.5", "0.99"], threshold)
    torch.testing.assert_close(found.rewards, torch.tensor(expected))
    assert found.scored.tolist() == [True, True]
    assert found.failures == []


FAILURES: dict[str, tuple[Callable[[str], Any], str]] = {
    "an error": (lambda text: 1 / float(text), "ZeroDivisionError: "),
    "NaN": (lambda text: float(text) or float("nan"), "must be finite, got nan"),
    "infinity": (lambda text: float(text) or float("inf"), "must be finite, got inf"),
    "no number": (lambda text: float(text) or None, "TypeError: "),
    "text": (lambda text: float(text) or text, "TypeError: the reward must be a number, got the"),
    "sys.exit": (lambda text: float(text) or sys.exit(3), "SystemExit: 3"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_costs_its_prompt_alone(name: str) -> None:
    judge, message = FAILURES[name]
    found = score(Judge(judge), PROMPTS, ["1", "2", "0", "4"])
    assert found.scored.tolist() == [True, False]
    torch.testing.assert_close(found.rewards[0], torch.tensor([judge("1"), judge("2")]))
    (failure,) = found.failures
    assert message in failure
    # file and line of the task's own code, whoever raised
    assert re.search(rf"\({re.escape(__file__)}:\d+\)$", failure)


def test_no_reward_at_all_is_an_error_with_the_users_own() -> None:
    with pytest.raises(RewardError, match="none of 2 prompts could be scored") as caught:
        check_any(score(Judge(lambda text: 1 / 0), PROMPTS, ["1", "2", "3", "4"]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


MODULE = """
import random
from logitless.rl.tasks import Prompt, SumToN

class Graded(SumToN):
    calls = 0

    def reward(self, prompt, completion):
        Graded.calls += 1
        # the first answer of every step of 4 x 8 answers
        if Graded.calls % 32 == 1:
            raise KeyError("an answer nobody foresaw")
        return 3.0 if super().reward(prompt, completion) else -1.0
"""


def test_a_run_skips_what_has_no_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "graded_task.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tiny_recipe(
        tmp_path, "steps=2", "task.name=graded_task:Graded", "task.right=3", "compare_repeats=0",
        "methods={grpo: {preset: grpo}}",
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert [row["skipped_prompts"] for row in rows] == [1, 1]
    # of 24 answers, in [-1, 3] and not in [0, 1]
    assert all(-1 <= row["reward"] <= 3 for row in rows)
    assert rows[0]["reward"] < 0 and rows[0]["reward_std"] > 0
    printed = capsys.readouterr().out
    assert "grpo step 1: skipped 1 of 4 prompts without a reward: KeyError" in printed
    assert f"{tmp_path / 'graded_task.py'}:" in printed
