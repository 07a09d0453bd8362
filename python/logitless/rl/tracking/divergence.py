"""A run whose numbers are none any more ends by name, not in a chain of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

# Weights beyond this are no model's: a product of four is near the end of float32.
LARGEST = 1e9


class Diverged(RuntimeError):
    """Names the method, the step, and what was no number first."""


@contextmanager
def watched(method: str, step: int, broken: Callable[[], str | None]) -> Iterator[None]:
    """A step of training. What fails, here or on another rank, since the model's weights are no
    numbers to compute with, is a divergence; other errors stay what they are. broken: names such a
    weight."""
    try:
        yield
    except Exception as error:
        what = broken()
        if what is not None:
            raise _diverged(method, step, what) from error
        raise


def check_weights(method: str, step: int, broken: Callable[[], str | None]) -> None:
    """Before they are saved in place of good ones."""
    what = broken()
    if what is not None:
        raise _diverged(method, step, what)


def first_broken(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Which weight holds what is no number, or one too large to compute with; None: none does."""
    for name, weight in named:
        largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
        if not math.isfinite(largest):
            return f"{name} is not finite"
        if largest > LARGEST:
            return f"{name} is as large as {largest:.0e}"
    return None


def check_finite(method: str, step: int, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise _diverged(method, step, f"{key} is {value}")


def _diverged(method: str, step: int, what: str) -> Diverged:
    return Diverged(
        f"method '{method}' diverged in step {step + 1}: {what}; its last checkpoint is from before"
    )
