"""Bundled rewards of an answer by its text, its length or other rewards."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitless.rl.tasks.bundled.option_checks import at_least_1, finite


@dataclass(frozen=True)
class Format:
    """float(bool(re.fullmatch(pattern, completion))), or with `part` float(bool(re.search(...))).

    pattern: a regular expression of Python's `re`; `(?s)` at its start lets `.` be a line's end.
    """

    pattern: str
    part: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"pattern must be a regular expression, got {self.pattern!r}: {error}"
            ) from None

    def __call__(self, prompt: Any, completion: str, **row: Any) -> float:
        match = re.search if self.part else re.fullmatch
        return float(match(self.pattern, completion) is not None)


@dataclass(frozen=True)
class OverLength:
    """0 for up to limit - cache tokens, then falling in a straight line to -1 at `limit`, and -1
    beyond: -clip((answer_tokens - (limit - cache)) / cache, 0, 1).

    limit: the longest answer, as a rule `rollout.max_new_tokens`; cache: tokens of the way down.
    The soft over-length punishment of DAPO, arXiv:2503.14476, equation 13.
    """

    limit: int
    cache: int

    def __post_init__(self) -> None:
        at_least_1("cache", self.cache)
        at_least_1("limit", self.limit)
        if self.cache > self.limit:
            raise ValueError(f"cache must be at most limit = {self.limit}, got {self.cache}")

    def __call__(self, prompt: Any, completion: str, *, answer_tokens: int, **row: Any) -> float:
        beyond = answer_tokens - (self.limit - self.cache)
        return -min(max(beyond / self.cache, 0.0), 1.0)


@dataclass(frozen=True)
class WorstCase:
    """min(of): the least of several rewards, the worst case of an ensemble (arXiv:2310.02743)."""

    def __call__(self, prompt: Any, completion: str, *, of: Sequence[float], **row: Any) -> float:
        return min(of)


@dataclass(frozen=True)
class LowerBound:
    """statistics.mean(of) - k * statistics.pstdev(of): what several rewards agree on.

    The standard deviation is that of the rewards themselves, divided by their number. A lower
    confidence bound of an ensemble; arXiv:2310.02743 subtracts the variance instead.
    """

    k: float = 1.0

    def __post_init__(self) -> None:
        finite("k", self.k)
        if self.k < 0:
            raise ValueError(f"k must be at least 0, got {self.k}")

    def __call__(self, prompt: Any, completion: str, *, of: Sequence[float], **row: Any) -> float:
        return statistics.fmean(of) - self.k * statistics.pstdev(of)
