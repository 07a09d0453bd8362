"""A run whose numbers are none any more ends by name, not in a chain of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Diverged(RuntimeError):
    """Names the method, the step, and what was no number first."""


@contextmanager
def watched(method: str, step: int, broken: Callable[[], str | None]) -> Iterator[None]:
    """A step of training. What fails, here or on another rank, since the model's weights are no
    numbers, is a divergence; other errors stay what they are. broken: names such a weight."""
    try:
        yield
    except Exception as error:
        name = broken()
        if name is not None:
            raise _diverged(method, step, f"{name} is not finite") from error
        raise


def check_finite(method: str, step: int, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise _diverged(method, step, f"{key} is {value}")


def _diverged(method: str, step: int, what: str) -> Diverged:
    return Diverged(
        f"method '{method}' diverged in step {step + 1}: {what}; its last checkpoint is from before"
    )
