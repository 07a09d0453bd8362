"""What a function of steps may return, and what it costs where it returns something else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from logitless.rl.recipe import RewardRecipe
from logitless.rl.tasks import Prompt, Task, join_scores, load_task, score
from logitless.rl.tasks.stepwise import Stepwise
from tests.support.recipes import tiny_recipe

CODE = """
import json

def given(prompt, completion, **row):
    # the answer itself says what it returns
    return [(end, float(reward)) for end, reward in json.loads(completion)]

def of_group(prompt, completions, **row):
    return [[(1, 0.25), (len(text), -1)] for text in completions]

def raw(prompt, completion, **row):
    return {"1": [(1, 1.0)], "12": 3.0}[completion]

def doubled(prompt, completion, of, **row):
    return 2 * of[0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("stepwise")
    (home / "step_rewards.py").write_text(CODE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(home)
        yield home


def mine(name: str, **more: Any) -> RewardRecipe:
    return RewardRecipe(f"step_rewards.py:{name}", **more)


def load(**rewards: RewardRecipe) -> Task:
    return load_task("sum_to_n", {}, rewards=rewards)


def of_tokens(i: int, places: Sequence[int]) -> list[int]:
    """Tokens of two characters."""
    return [(place + 1) // 2 for place in places]


@pytest.mark.parametrize(
    ("returned", "text", "message"),
    [
        (0.5, "abc", r"must be a list of \(end, reward\), got 0.5"),
        ([], "abc", r"must rise from 1 up to 3, the length of its text, got \[\]"),
        ([(1, 0.0), (1, 0.0), (3, 1.0)], "abc", r"must rise .*, got \[1, 1, 3\]"),
        ([(2, 0.0), (1, 0.0), (3, 1.0)], "abc", r"must rise .*, got \[2, 1, 3\]"),
        ([(0, 0.0), (3, 1.0)], "abc", r"must rise .*, got \[0, 3\]"),
        ([(1, 0.0), (4, 1.0)], "abc", r"must rise from 1 up to 3, .*, got \[1, 4\]"),
        ([(2, 1.0)], "abc", r"must rise from 1 up to 3, .*, got \[2\]"),
        ([(1, 0.0), (3, math.nan)], "abc", "the reward of a step must be finite, got nan"),
        ([(3, math.inf)], "abc", "the reward of a step must be finite, got inf"),
        ([(2.5, 0.0), (3, 1.0)], "abc", "the end of a step must be a whole number, got 2.5"),
        ([(1, 2, 3)], "abc", r"a step must be \(end, reward\), got \(1, 2, 3\)"),
        ([("x", 1.0)], "abc", r"a step must be \(end, reward\), got \('x', 1.0\)"),
        ([1.0, 2.0, 3.0], "abc", r"a step must be \(end, reward\), got 1.0"),
        ([(0, 1.0), (0, 1.0)], "", r"must rise from 1 up to 0, .*, got \[0, 0\]"),
    ],
)
def test_what_is_no_steps_is_refused(returned: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stepwise.read(returned, text, "min")


def test_the_reward_is_the_least_or_the_sum() -> None:
    steps = [(1, 0.5), (2, -0.25), (5, 1.0)]
    assert Stepwise.read(steps, "abcde", "min") == -0.25
    assert Stepwise.read(steps, "abcde", "sum") == 1.25
    # the numbers of an array will do, and an answer without a text is one step
    import torch

    found = Stepwise.read(torch.tensor([[1.0, 0.5], [2.0, 0.25]]), "ab", "min")
    assert found == 0.25 and found.steps == [(1, 0.5), (2, 0.25)]
    assert Stepwise.read([(0, -1.0)], "", "min").steps == [(0, -1.0)]


def test_steps_are_by_tokens_beside_the_columns(folder: Path) -> None:
    task = load(
        steps=mine("of_group", steps="min", weight=0.5),
        twice=mine("doubled", of=["steps"]),
    )
    found = score(task, [Prompt("a", 1)], ["abc", "abcd"], token_ends=of_tokens)
    assert found.columns["steps"].tolist() == [[-1, -1]]
    assert found.columns["twice"].tolist() == [[-2, -2]]
    assert found.rewards.tolist() == [[-2.5, -2.5]]
    assert found.steps == [[(1, 0.25), (2, -1.0)], [(1, 0.25), (2, -1.0)]]
    # of a text alone nothing is known of its tokens
    assert score(task, [Prompt("a", 1)], ["abc", "abcd"]).steps is None


def test_a_bad_return_costs_its_prompt_alone(folder: Path) -> None:
    task = load(steps=mine("given", steps="sum"))
    one, two, bad, short = "[[11, 1.0]]", "[[11, 2.0]]", "[[11, NaN]]", "[[1, 1]]"
    prompts = [Prompt(str(i), i) for i in range(3)]
    texts = [one, two, one, bad, two, short]
    found = score(task, prompts, texts, token_ends=of_tokens)
    assert found.scored.tolist() == [True, False, False]
    assert [message.split(" (")[0] for message in found.failures] == [
        "ValueError: the reward of a step must be finite, got nan",
        "ValueError: the ends of an answer's steps must rise from 1 up to 8, the length of its "
        "text, got [1]",
    ]
    kept = found.of_prompts(found.scored)
    assert kept.steps == [[(6, 1.0)], [(6, 2.0)]]
    whole = join_scores([kept, found], None)
    assert (
        whole.steps is not None
        and len(whole.steps) == 8
        and whole.steps[:4] == [*kept.steps, *kept.steps]
    )


def test_a_function_without_the_key_returns_a_number(folder: Path) -> None:
    found = score(load(a=mine("raw")), [Prompt("a", 1)], ["1"], token_ends=of_tokens)
    assert found.failures[0].startswith("TypeError")
    found = score(load(a=mine("raw", steps="min")), [Prompt("a", 1)], ["12"], token_ends=of_tokens)
    assert "must be a list of (end, reward), got 3.0" in found.failures[0]


FUNCTION = "function: 'step_rewards.py:of_group'"


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (
            "{a: {function: laser, steps: min}}",
            r"'task\.rewards\.a\.steps' must be null with task\.rewards\.a\.function=laser",
        ),
        ("{a: {function: task, steps: min}}", r"'task\.rewards\.a\.steps' must be null with"),
        (
            f"{{a: {{{FUNCTION}, steps: min, threshold: 1}}}}",
            r"'task\.rewards\.a\.threshold' must be null with task\.rewards\.a\.steps=min, got 1",
        ),
        (
            f"{{a: {{{FUNCTION}, steps: min}}, b: {{{FUNCTION}, steps: sum}}}}",
            r"'task\.rewards\.b\.steps' must be null with task\.rewards\.a\.steps",
        ),
        (f"{{a: {{{FUNCTION}, steps: max}}}}", r"task\.rewards\.a\.steps.*min.*sum"),
    ],
)
def test_mistakes_of_a_recipe_are_named(tmp_path: Path, rewards: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, f"task.rewards={rewards}")
