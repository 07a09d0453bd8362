"""Checks that the dataclasses of a spec share: each message names the field and what came."""

from __future__ import annotations

import math
from collections.abc import Callable


def require(name: str, value: float, ok: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and ok(value)):
        raise ValueError(f"{name} must be {expected}, got {value}")


def positive(name: str, value: float) -> None:
    require(name, value, lambda x: x > 0.0, "> 0")


def not_negative(name: str, value: float) -> None:
    require(name, value, lambda x: x >= 0.0, ">= 0")


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def instance(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be one of {names}, got {value!r}")


def nonsense(a: str, b: str, why: str) -> ValueError:
    """Two fields that contradict each other; `a` and `b` are written name=value."""
    return ValueError(f"{a} makes no sense with {b}: {why}")
