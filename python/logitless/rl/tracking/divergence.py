"""A run whose numbers are none any more ends by name, not in a chain of NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Diverged(RuntimeError):
    """Names the method, the step, and what was no number first."""


@contextmanager
def watched(method: str, step: int, model: Any) -> Iterator[None]:
    """A step of training. What fails, here or on another rank, since the model's weights are no
    numbers, is a divergence; other errors stay what they are."""
    try:
        yield
    except Exception as error:
        for name, parameter in model.named_parameters():
            if not bool(parameter.isfinite().all()):
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
