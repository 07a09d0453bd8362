from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest

from logitless.rl.tasks import Prompt, SumToN, Task, TaskWithSolutions, load_task

HAS_REASONING_GYM = importlib.util.find_spec("reasoning_gym") is not None


def test_sum_to_n_accepts_its_own_solutions_and_only_right_answers() -> None:
    task = SumToN(low=3, high=33, digits=4)
    rng = random.Random(0)
    prompts = task.prompts(rng, 200)
    assert {p.data for p in prompts} == set(range(3, 34))
    for prompt in prompts:
        assert prompt.text == f"sum {prompt.data}:"
        assert task.reward(prompt, task.solution(rng, prompt)) == 1.0
    seventeen = Prompt("sum 17:", 17)
    wrong = ["8226", "82250", "8 225", "", "abcd", "-225", "²225", " 8225"]
    assert [task.reward(seventeen, text) for text in wrong] == [0.0] * len(wrong)
    assert task.reward(seventeen, "8225") == 1.0


def test_the_same_rng_gives_the_same_prompts() -> None:
    task = SumToN()
    assert task.prompts(random.Random("a"), 9) == task.prompts(random.Random("a"), 9)
    assert task.prompts(random.Random("a"), 9) != task.prompts(random.Random("b"), 9)


def test_sum_to_n_refuses_sums_without_an_answer() -> None:
    with pytest.raises(ValueError, match=r"low <= high <= 18 \(digits=2\), got low=1, high=19"):
        SumToN(low=1, high=19, digits=2)


@pytest.mark.parametrize(("operation", "right"), [("+", 9), ("-", 5), ("*", 14)])
def test_arithmetic_takes_the_last_number(operation: str, right: int) -> None:
    task = load_task("arithmetic", {"operation": operation})
    prompt = Prompt(f"What is 7 {operation} 2?", right)
    for text in (f"{right}", f"7 {operation} 2 = {right}.", f"1, no: {right}<|im_end|>"):
        assert task.reward(prompt, text) == 1.0
    for text in ("", "none", f"{right} or 100", f"{right}0"):
        assert task.reward(prompt, text) == 0.0
    for prompt in task.prompts(random.Random(0), 50):
        a, b = map(int, re.findall(r"\d", prompt.text))
        assert {"+": a + b, "-": a - b, "*": a * b}[operation] == prompt.data
        assert 1 <= min(a, b) <= max(a, b) <= 9


def test_arithmetic_refuses_what_it_cannot_ask() -> None:
    with pytest.raises(ValueError, match=r"0 <= low <= high, got low=5, high=4"):
        load_task("arithmetic", {"low": 5, "high": 4})
    with pytest.raises(ValueError, match=r"an operation of \+, -, \*, got '/'"):
        load_task("arithmetic", {"operation": "/"})


def test_built_in_by_name() -> None:
    task = load_task("sum_to_n", {"low": 5, "high": 5})
    assert isinstance(task, TaskWithSolutions)
    assert task.prompts(random.Random(0), 1) == [Prompt("sum 5:", 5)]


def test_unknown_name_suggests() -> None:
    with pytest.raises(ValueError, match=r"task 'sum_to_m' is unknown; did you mean 'sum_to_n'\?"):
        load_task("sum_to_m", {})


def test_a_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "class Shout:\n"
        "    def __init__(self, word): self.word = word\n"
        "    def prompts(self, rng, n): return [(self.word, None)] * n\n"
        "    def reward(self, prompt, completion): return float(completion.isupper())\n"
        "def nothing(): return 3\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = load_task("my_tasks:Shout", {"word": "hello"})
    assert isinstance(task, Task)
    assert not isinstance(task, TaskWithSolutions)
    assert task.prompts(random.Random(0), 2)[0][0] == "hello"
    with pytest.raises(ValueError, match=r"'my_tasks:nothing' must have prompts\(rng, n\)"):
        load_task("my_tasks:nothing", {})
    with pytest.raises(ValueError, match="'my_tasks:Absent' names nothing in my_tasks"):
        load_task("my_tasks:Absent", {})


def test_without_reasoning_gym_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'logitless\[reasoning-gym\]'"):
        load_task("reasoning_gym:chain_sum", {})


@pytest.mark.skipif(not HAS_REASONING_GYM, reason="reasoning-gym is not installed")
def test_reasoning_gym() -> None:
    task = load_task("reasoning_gym:chain_sum", {"text": "expression", "max_terms": 2})
    assert isinstance(task, TaskWithSolutions)
    rng = random.Random(0)
    for prompt in task.prompts(rng, 5):
        assert prompt.text == prompt.data["metadata"]["expression"]
        assert task.reward(prompt, f" {task.solution(rng, prompt)} ") == 1.0
        assert task.reward(prompt, "no number") < 0.99
