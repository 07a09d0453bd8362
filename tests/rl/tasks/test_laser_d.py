"""LASER-D by its formula: targets of three difficulties from the answers of the steps before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from logitless.rl.recipe import RewardRecipe
from logitless.rl.tasks import (
    BUNDLED,
    Answered,
    FollowsTraining,
    Group,
    Prompt,
    Task,
    following_of,
    load_task,
    score,
)


def laser_d(**options: Any) -> Any:
    return BUNDLED["laser_d"](**options)


def group(right: str, lengths: list[int]) -> Group:
    """Answers to one prompt; right: a digit of 0 or 1 an answer."""
    rewards = [[float(digit) for digit in right]]
    return Group("a prompt", ["text"] * len(right), lengths, rewards)


def paid(reward: Any, right: str, lengths: list[int]) -> list[float]:
    one = group(right, lengths)
    found: list[float] = reward(
        one.prompt, one.completions, of=one.of, answer_tokens=lengths, total=8
    )
    return found


# Two easy prompts of six answers, a medium one and a hard one.
EASY = [group("111110", [3, 4, 5, 6, 9, 2]), group("111111", [7, 8, 8, 8, 8, 8])]
MEDIUM, HARD = group("010100", [9, 4, 9, 7, 9, 5]), group("000010", [6, 9, 9, 9, 5, 8])
# Of 12 answers to easy prompts 3 have up to 4 tokens, and 3 / 12 times 2 * 6 / 3 right ones is 1.
# Of 6 to medium ones 3 have up to 7, and 3 / 6 times 6 / 3 is 1; all to hard ones have up to 9.
BY_ANSWERS = {"easy": 4, "medium": 7, "hard": 9}
# Of 11 right answers to easy prompts 2 have up to 4 tokens and 3 up to 5, and 3 / 11 times 4 is
# above 1; of 2 to medium ones 1 has up to 4; the one to a hard one has 5.
BY_RIGHT = {"easy": 5, "medium": 4, "hard": 5}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BY_ANSWERS),
        ({"coverage": "right"}, BY_RIGHT),
        # lengths 2, 5, 8, 10
        ({"least": 2, "interval": 3}, {"easy": 5, "medium": 8, "hard": 10}),
        ({"least": 6}, {"easy": 6, "medium": 7, "hard": 9}),
        # not all answers to the hard prompt are that short
        ({"limit": 8}, {"easy": 4, "medium": 7, "hard": 8}),
    ],
)
def test_a_target_is_the_least_length_that_expects_a_right_answer(
    options: dict[str, Any], expected: dict[str, int]
) -> None:
    reward = laser_d(**{"limit": 10, **options})
    reward.after_step([*EASY, MEDIUM, HARD])
    assert reward.targets == expected


def test_targets_are_those_of_the_prompts_difficulty() -> None:
    reward = laser_d(limit=10, alpha=0.25)
    # before the first step all right answers have it
    assert paid(reward, "110", [1, 10, 1]) == [0.25, 0.25, 0.0]
    reward.after_step([*EASY, MEDIUM, HARD])
    assert paid(reward, "111100", [4, 5, 3, 10, 1, 1]) == [0.25, 0.0, 0.25, 0.0, 0.0, 0.0]
    assert paid(reward, "110", [4, 5, 1]) == [0.25, 0.0, 0.0]
    assert paid(reward, "110000", [7, 8, 1, 1, 1, 1]) == [0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert paid(reward, "100000", [9, 1, 1, 1, 1, 1]) == [0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
    # of a single answer, as a greedy one is
    assert paid(reward, "1", [4]) == [0.25] and paid(reward, "1", [5]) == [0.0]
    with pytest.raises(ValueError, match="of must name one reward, that of a right answer, got 2"):
        reward("", [""], of=[[1.0], [1.0]], answer_tokens=[1])


def test_they_are_estimated_after_the_first_step_and_every_so_many() -> None:
    reward = laser_d(limit=10, every=3)
    told = [reward.after_step([group("111", [n, n, n])]) for n in (9, 2, 2, 6, 6, 6, 1)]
    # of step 1; of 2 and 3; of 4, 5 and 6; nothing is known of other difficulties
    assert [row["target_easy"] for row in told] == [10, 9, 9, 2, 2, 2, 6]
    assert {row["target_hard"] for row in told} == {10.0}


def test_groups_of_two_still_expect_one_right_answer() -> None:
    """A third of two answers is none: a medium prompt has one that is right."""
    reward = laser_d(limit=10)
    reward.after_step([group("10", [3, 5])])
    assert reward.targets == {"easy": 10, "medium": 5, "hard": 10}


def test_the_state_is_all_that_changes() -> None:
    one, other = (laser_d(limit=10, every=4) for _ in range(2))
    assert isinstance(one, FollowsTraining)
    steps = [[*EASY, MEDIUM], [HARD], [MEDIUM, HARD], [EASY[0]], [EASY[1]], [HARD, MEDIUM]]
    for step in steps[:2]:
        one.after_step(step)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in steps[2:]:
        assert one.after_step(step) == other.after_step(step)
    assert one.state_dict() == other.state_dict()
    with pytest.raises(ValueError, match="a state must be of 5 lengths"):
        laser_d(limit=5).load_state_dict(one.state_dict())


def load(**rewards: RewardRecipe) -> Task:
    return load_task("sum_to_n", {}, rewards=rewards)


def test_in_a_recipe_it_sees_the_group() -> None:
    of_d = RewardRecipe("laser_d", options={"limit": 9}, of=["accuracy"])
    task = load(accuracy=RewardRecipe("task"), brevity=of_d)
    before = Answered(["sum 17:"], [""] * 3, [4, 6, 5], {"accuracy": [[1.0, 1.0, 0.0]]})
    following_of(task).after_step(before)
    # the answers to the first prompt are right, one of the second's is
    texts = ["8225", "8225", "8225", "8225", "no", "no"]
    found = score(task, [Prompt("sum 17:", 17)] * 2, texts, tokens=[4, 6, 5, 5, 4, 4])
    # half of the three answers have up to 5 tokens, 2 of 3 are expected to be right
    assert found.columns["brevity"].tolist() == [[0.5, 0.0, 0.5], [0.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"task\.rewards\.a\.function 'laser_d': .*missing 1 required .* 'limit'"),
        ({"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        ({"limit": 4, "every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"limit": 4, "least": 5}, "least must be at most limit = 4, got 5"),
        ({"limit": 4, "interval": 0.5}, "interval must be a whole number of at least 1, got 0.5"),
        ({"limit": 4, "coverage": "all"}, "coverage must be one of answers, right, got 'all'"),
        ({"limit": 4}, "of must name other rewards"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(a=RewardRecipe("laser_d", options=options))
