"""Rewards of the steps of an answer, as a process reward model gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

# Of a step its end, and its reward.
Step: TypeAlias = "tuple[int, float]"

# What an answer's reward is, from those of its steps.
WHOLE: Mapping[str, Callable[[Sequence[float]], float]] = {"min": min, "sum": math.fsum}


class Stepwise(float):
    """The reward of an answer whose steps have rewards of their own."""

    # ends are places in the answer's text, one behind the last character of a step
    steps: Sequence[Step]

    @classmethod
    def read(cls, returned: Any, text: str, whole: str) -> Stepwise:
        """What a function has returned for an answer: [(end, reward), ...]. The steps are the whole
        text, in its order: ends rise, and the last is len(text). ValueError where they are not, or
        a reward is no finite number."""
        steps = [_step(pair) for pair in _list(returned)]
        ends = [end for end, _ in steps]
        rise = all(before < end for before, end in zip([0, *ends], ends, strict=False))
        # an answer without a text is one step
        if not ends or ends[-1] != len(text) or not (rise or ends == [0]):
            raise ValueError(
                f"the ends of an answer's steps must rise from 1 up to {len(text)}, the length of "
                f"its text, got {ends[:20]}"
            )
        found = cls(WHOLE[whole]([reward for _, reward in steps]))
        found.steps = steps
        return found


def _list(returned: Any) -> list[Any]:
    try:
        return list(returned)
    except TypeError:
        raise ValueError(
            f"the rewards of an answer's steps must be a list of (end, reward), got {returned!r}"
        ) from None


def _step(pair: Any) -> Step:
    try:
        end, reward = pair
        at, value = int(end), float(reward)
    except (TypeError, ValueError):
        raise ValueError(f"a step must be (end, reward), got {pair!r}") from None
    if at != end:
        raise ValueError(f"the end of a step must be a whole number, got {end!r}")
    if not math.isfinite(value):
        raise ValueError(f"the reward of a step must be finite, got {value}")
    return at, value
