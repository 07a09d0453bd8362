"""Advantages of tokens from the rewards of steps, worked out by hand in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.update import of_each_token, step_advantages  # noqa: E402
from logitless.rl.update.step_advantages import of_process  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

# An answer of three tokens and two steps, and one of two tokens and one step.
STEPS: list[list[tuple[int, float]]] = [[(1, 0.5), (3, -0.5)], [(2, 1.0)]]
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
LIMIT = 5
# softmax(-r / T) of 0.5 and -0.5 is 1 / (1 + e^(1 / T)) and the rest
FIRST = {t: 1 / (1 + math.exp(1 / t)) for t in (1.0, 0.1)}


def pure(temperature: float) -> list[list[float]]:
    w = FIRST[temperature]
    last = -0.5 * (1 - w)
    start = 0.5 * w + last
    # the other answer's returns, 1 and 1, or these, over the limit
    own, other = 2 / LIMIT, (start + 2 * last) / LIMIT
    return [[start - own, last - own, last - own, 0], [1 - other, 1 - other, 0, 0]]


PROCESS = [[0 - 0.4, -0.5 - 0.4, -0.5 - 0.4, 0], [1 + 0.2, 1 + 0.2, 0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_pure(temperature: float) -> None:
    found = of_process(STEPS, MASK, 1, "pure", temperature, LIMIT)
    assert found.dtype == torch.float64
    exact = torch.tensor(pure(temperature), dtype=torch.float64)
    torch.testing.assert_close(found, exact, atol=1e-14, rtol=0)


def test_sums() -> None:
    found = of_process(STEPS, MASK, 1, "process", 0.1, LIMIT)
    exact = torch.tensor(PROCESS, dtype=torch.float64)
    torch.testing.assert_close(found[MASK], exact[MASK], atol=1e-14, rtol=0)


def test_groups_are_apart() -> None:
    """A second prompt between, whose answers are longer, changes nothing."""
    longer = torch.tensor([[1, 1, 1, 1]] * 2).bool()
    others: list[list[tuple[int, float]]] = [[(4, 9.0)], [(1, 3.0), (4, -9.0)]]
    for kind in ("pure", "process"):
        both = of_process([*others, *STEPS], torch.cat([longer, MASK]), 2, kind, 1.0, LIMIT)
        alone = of_process(STEPS, MASK, 1, kind, 1.0, LIMIT)
        assert torch.equal(both[2:], alone)


@pytest.mark.parametrize(("kind", "expected"), [("pure", -0.25), ("process", 0.25)])
def test_steps_that_end_in_one_token_are_one(kind: str, expected: float) -> None:
    two: Sequence[Sequence[tuple[int, float]]] = [[(2, 0.5), (2, -0.25)], [(1, 0.0)]]
    one: Sequence[Sequence[tuple[int, float]]] = [[(2, expected)], [(1, 0.0)]]
    mask = torch.tensor([[1, 1], [1, 0]]).bool()
    found, merged = (of_process(x, mask, 1, kind, 0.1, 2) for x in (two, one))
    assert torch.equal(found, merged)
    assert found[0].tolist() == [expected, expected]


def recipe(folder: Path, kind: str) -> Recipe:
    rewards = (
        "{right: {function: task, weight: 2}, watched: {function: format, weight: 0, "
        "options: {pattern: x}}, steps: {function: 'x.py:x', steps: min, weight: 0.5}}"
    )
    return tiny_recipe(
        folder, f"task.rewards={rewards}", f"update.advantage={kind}",
        "update.pure_temperature=1", f"rollout.max_new_tokens={LIMIT}",
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "of_steps"), [("pure", pure(1.0)), ("process", PROCESS)])
def test_rewards_of_whole_answers_are_added(
    tmp_path: Path, kind: str, of_steps: list[list[float]]
) -> None:
    columns = {
        "right": torch.tensor([[1.0, 0.25]]),
        "watched": torch.tensor([[5.0, -5.0]]),
        "steps": torch.tensor([[-0.5, 1.0]]),
    }
    found = step_advantages(columns, STEPS, MASK, recipe(tmp_path, kind), kind)
    # leave-one-out of 2 and 0.5
    whole = torch.tensor([[1.5], [-1.5]]) * MASK
    expected = whole + 0.5 * torch.tensor(of_steps)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.dtype == torch.float32 and not found[~MASK].any()


def test_of_each_token() -> None:
    of_answers, of_tokens = torch.tensor([2.0, 3.0]), torch.arange(8.0).view(2, 4)
    assert of_each_token(of_answers, MASK).tolist() == [2, 2, 2, 3, 3]
    assert of_each_token(of_tokens, MASK).tolist() == [0, 1, 2, 4, 5]
