from __future__ import annotations

import math

import pytest

from logitless.rl.diversity import answer_entropy, balance, support_changes


def test_the_entropy_of_answers_is_that_of_the_distinct_ones() -> None:
    assert answer_entropy(["a", "a", "a"]) == 0.0
    assert answer_entropy(["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert answer_entropy(["a", "b", "a", "a"]) == pytest.approx(expected)


def test_balance_wants_many_right_answers_and_few_wrong_ones() -> None:
    texts = [str(i) for i in range(16)]
    assert balance(texts[:8], [True] * 8) == balance(texts, [True] * 16) == 1.0
    # eight ways to be right among sixteen
    assert balance(texts, [True] * 8 + [False] * 8) == 0.5
    # four of five: 4 / 8 * 4 / 5
    assert balance(texts[:5], [True] * 4 + [False]) == pytest.approx(0.4)
    # the same answer again is none more
    assert balance(["a", "a", "b"], [True, True, False]) == pytest.approx(1 / 8 * 1 / 2)
    assert balance(["a"], [False]) == 0.0


def test_prompts_are_lost_and_gained() -> None:
    start, now = [0, 0, 3, 1, 8, None, 2, 5], [0, 1, 0, 4, 0, 7, None, 5]
    assert support_changes(start, now) == {"support_shrink": 2 / 6, "support_expand": 1 / 6}
    assert support_changes(start, start) == {"support_shrink": 0.0, "support_expand": 0.0}
    assert support_changes([None], [3]) == {}
    with pytest.raises(ValueError, match="shorter"):
        support_changes([1, 2], [1])
