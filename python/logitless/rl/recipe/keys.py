"""A key of a recipe: a dataclass field that knows what it does and what it may be.

Errors and docs/recipe.md are made of that. An error names the key as the YAML file spells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple


class Range(NamedTuple):
    """What a number may be; a number without end is in no range that does not say so."""

    # after "must be"
    text: str
    holds: Callable[[float], bool]
    endless: bool = False


def at_least(least: float) -> Range:
    return Range(f"at least {least}", lambda x: x >= least)


def above(bound: float, *, endless: bool = False) -> Range:
    return Range(f"above {bound}", lambda x: x > bound, endless)


SHARE = Range("in [0, 1]", lambda x: 0 <= x <= 1)
SHARE_ABOVE_0 = Range("in (0, 1]", lambda x: 0 < x <= 1)
SHARE_BELOW_1 = Range("in [0, 1)", lambda x: 0 <= x < 1)
FINITE = Range("finite", lambda x: True)
SEED = Range("at least 0 and below 2^64", lambda x: 0 <= x < 2**64)
# of a key that has no default
REQUIRED = MISSING


def key(
    # a class or a function that makes it, where it is a list or a mapping
    default: Any,
    about: str,
    # words are for the docs, and others check
    allowed: Range | str = "",
) -> Any:
    made = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"about": about, "allowed": allowed})


def check_ranges(section: Any, path: str) -> None:
    """ValueError for the first number of the section that is out of its range."""
    for known in fields(section):
        allowed, value = known.metadata.get("allowed"), getattr(section, known.name)
        if isinstance(allowed, Range) and value is not None and not within(allowed, value):
            name = f"{path}.{known.name}" if path else known.name
            raise ValueError(f"recipe key '{name}' must be {allowed.text}, got {value}")


def within(allowed: Range, value: float) -> bool:
    return allowed.holds(value) and (math.isfinite(value) or allowed.endless)
