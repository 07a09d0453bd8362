"""A reward that takes too long is none, wherever it is asked."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from logitless.rl.demo.job import run
from logitless.rl.tasks import Prompt, RewardError, check_any, score
from logitless.rl.tasks.attempts import RewardTimeout, within
from logitless.rl.tracking import metrics
from tests.support.recipes import tiny_recipe

PROMPTS = [Prompt("a"), Prompt("b")]
LIMIT, LONG = 0.2, 5.0


class Slow:
    """An answer "slow" takes far longer than the limit."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        return [Prompt("a")] * n

    def reward(self, prompt: Prompt, completion: str) -> float:
        self.asked.append(completion)
        if completion == "slow":
            time.sleep(LONG)
        return float(completion)


class SlowAtOnce(Slow):
    def rewards(self, prompts: Any, completions: Any) -> list[float]:
        time.sleep(LONG)
        return [1.0] * len(completions)


def test_a_late_reward_costs_its_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    judge, began = Slow(), time.monotonic()
    found = score(judge, PROMPTS, ["1", "slow", "slow", "3", "4", "5"], seconds=LIMIT)
    assert time.monotonic() - began < LONG
    assert found.scored.tolist() == [False, True]
    assert found.rewards[1].tolist() == [3.0, 4.0, 5.0]
    # the rest of a lost prompt is not waited for
    assert judge.asked == ["1", "slow", "3", "4", "5"]
    (failure,) = found.failures
    assert failure.startswith("RewardTimeout: no reward within 0.2 s (")
    line = Path(__file__).read_text("utf-8").splitlines().index("            time.sleep(LONG)")
    assert failure.endswith(f"{Path(__file__).name}:{line + 1})")


def test_without_a_limit_everything_is_waited_for() -> None:
    threads = []

    class Judge(Slow):
        def reward(self, prompt: Prompt, completion: str) -> float:
            threads.append(threading.current_thread())
            return 1.0

    score(Judge(), PROMPTS, ["1", "2"])
    score(Judge(), PROMPTS, ["1", "2"], seconds=60)
    here = threading.current_thread()
    assert [thread is here for thread in threads] == [True, True, False, False]


def test_one_call_for_all_has_the_limit_once() -> None:
    began = time.monotonic()
    found = score(SlowAtOnce(), PROMPTS, ["1", "2", "3", "4"], seconds=LIMIT)
    assert time.monotonic() - began < LONG
    with pytest.raises(RewardError, match="no reward within") as caught:
        check_any(found)
    assert isinstance(caught.value.__cause__, RewardTimeout)


def test_errors_and_results_come_through_as_they_are() -> None:
    assert within(60, lambda: 3) == 3
    assert within(60, lambda: None) is None
    with pytest.raises(ZeroDivisionError) as caught:
        within(60, lambda: 1 / 0)
    assert caught.traceback[-1].path == Path(__file__)
    with pytest.raises(KeyboardInterrupt):
        within(60, lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_a_limit_holds_in_another_thread_too() -> None:
    """SIGALRM would not: signals are the main thread's."""
    found: list[Any] = []

    def work() -> None:
        found.append(score(Slow(), PROMPTS, ["slow", "1"], seconds=LIMIT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LONG - 1)
    assert found and found[0].scored.tolist() == [False, True]


MODULE = """
import time
from logitless.rl.tasks import SumToN

class Sleeps(SumToN):
    calls = 0

    def reward(self, prompt, completion):
        Sleeps.calls += 1
        # once a step of 4 x 8 answers, of which a lost prompt is asked one
        if Sleeps.calls % 25 == 1:
            time.sleep(1.5)
        return float(len(completion))
"""


def test_a_run_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sleeping_task.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tiny_recipe(
        tmp_path, "steps=2", "task.name=sleeping_task:Sleeps", "task.reward_timeout=0.3",
        "compare_repeats=0", "methods={grpo: {preset: grpo}}",
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "grpo" / metrics.FILE)
    assert [row["skipped_prompts"] for row in rows] == [1, 1]
    printed = capsys.readouterr().out
    assert "grpo step 1: skipped 1 of 4 prompts without a reward: RewardTimeout" in printed
    assert f"{tmp_path / 'sleeping_task.py'}:12)" in printed
