"""Answers in groups: sums, means and order statistics over the answers of one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitless.inputs.records import changed
from logitless.inputs.tokens import Bools, Float64s, Int64s


@dataclass(frozen=True)
class Groups:
    """The answers of a call, flat. Each method gives every answer the number of its group; an
    answer that does not count has no part in it."""

    xp: Any
    ids: Int64s  # [M] in [0, number)
    number: int
    counts: Bools  # [M]

    @property
    def whole(self) -> Groups:
        """All answers in one group."""
        return changed(self, ids=self.ids * 0, number=1)

    @cached_property
    def ones(self) -> Float64s:
        return self.xp.cast(self.counts, self.xp.float64)

    def sum(self, values: Float64s) -> Float64s:
        held = self.xp.where(self.counts, values, 0.0)
        return self.xp.sums(held, self.ids, self.number)[self.ids]

    @cached_property
    def size(self) -> Float64s:
        """How many answers count; 1 in place of 0."""
        return self.xp.maximum(self.sum(self.ones), 1.0)

    def max(self, values: Float64s) -> Float64s:
        """-inf without an answer that counts."""
        held = self.xp.where(self.counts, values, -float("inf"))
        return self.xp.largest(held, self.ids, self.number)[self.ids]

    def mean(self, values: Float64s) -> Float64s:
        return self.sum(values) / self.size

    def centered(self, values: Float64s, weights: Float64s | None = None) -> Float64s:
        """values - mean(values), of equal values exactly 0; 0 where the weights add up to 0."""
        high = self.max(values)
        below = values - self.xp.where(self.xp.isfinite(high), high, 0.0)
        if weights is None:
            return below - self.mean(below)
        total = self.sum(weights)
        mean = self.sum(below * weights) / self.xp.where(total > 0, total, 1.0)
        return self.xp.where(total > 0, below - mean, 0.0)

    def std(self, centered: Float64s) -> Float64s:
        """The unbiased standard deviation, 0 of a single answer."""
        squares = self.sum(centered * centered)
        return (squares / self.xp.maximum(self.size - 1, 1.0)) ** 0.5

    def quantile(self, values: Float64s, q: float) -> Float64s:
        """Interpolated linearly between the two nearest answers; 0 without one."""
        xp = self.xp
        held = xp.where(self.counts, values, float("inf"))
        # answers that do not count come last in their group
        ordered = held[xp.order(held, self.ids)]
        ordered = xp.where(xp.isfinite(ordered), ordered, 0.0)
        every = self.ones * 0 + 1.0
        members = xp.sums(every, self.ids, self.number)
        first = xp.cast(members.cumsum(0) - members, xp.int64)[self.ids]
        place = q * (self.size - 1)
        low = xp.cast(place, xp.int64)
        last = xp.cast(self.size, xp.int64) - 1
        below, above = ordered[first + low], ordered[first + xp.minimum(low + 1, last)]
        return below + (place - low) * (above - below)
