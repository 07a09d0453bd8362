"""Places and ticks of a chart's axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# More are no finer on a screen: of longer curves so many, evenly spaced, the ends among them.
MOST_POINTS = 400


class Scale(NamedTuple):
    """From numbers to places on one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def span(values: Iterable[float], margin: float) -> tuple[float, float]:
    """The least and the largest, with room around them. ValueError where there is no number."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError("a chart needs a finite number, got none")
    low, high = min(finite), max(finite)
    if low == high == 0.0:
        # most often a share or a count, of which none is below 0
        return -margin, 1.0
    room = margin * (high - low) or 0.5 * abs(high)
    return low - room, high + room


def ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """The multiples between the two of 1, 2 or 5 times a power of ten, at most `most` + 1."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if raw <= power * (m + 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1)]


def label(value: float, among: Sequence[float]) -> str:
    """A tick in as many digits as tell it from its neighbours."""
    largest = max(abs(one) for one in among)
    if value == 0.0 or largest == 0.0:
        return "0"
    step = among[1] - among[0] if len(among) > 1 else largest
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if largest < 1e5 and digits <= 4:
        return f"{value:.{digits}f}"
    mantissa, power = f"{value:.{math.ceil(math.log10(largest / step))}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(power)}"


def thinned(count: int, most: int = MOST_POINTS) -> list[int]:
    """The places of at most so many of `count`, evenly spaced, both ends among them."""
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)]
