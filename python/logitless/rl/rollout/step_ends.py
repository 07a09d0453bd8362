"""Where in its tokens an answer's text has got to a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from logitless.rl.policy import text_of


def token_ends(
    ids: Sequence[int],  # of the answer, its end included
    places: Sequence[int],  # in its text, rising: 3 is behind the third character
    tokenizer: Any,
    *,
    special_tokens: bool,
) -> list[int]:
    """Of each place how many tokens it takes to get there: a token that goes on behind a place is
    counted. The text's end takes all tokens, the end token included."""

    def text(count: int) -> str:
        return text_of(list(ids[:count]), tokenizer, special_tokens=special_tokens)

    whole = text(len(ids))
    found: list[int] = []
    for place in places:
        known = found[-1] if found else 1
        end = len(ids)
        if place < len(whole):
            end = least(lambda n, to=place: text(n)[:to] == whole[:to], known, end)  # type: ignore[misc]
        found.append(end)
    return found


def least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least number in [low, high] that something holds for, which holds for all above it and
    for `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
