"""Sizes and numbers that torch.compile may leave open while it traces.

A graph serves any length where nothing is decided by one. A size or an option that the caller
changes is a symbol there: torch's guards then say for which values the graph holds.
"""

from __future__ import annotations

from typing import Any

from torch.fx.experimental.symbolic_shapes import guard_scalar, has_static_value


def any_symbol(*sizes: Any) -> bool:
    """Whether one of them may be another number in the next call of the graph that is traced."""
    return not all(has_static_value(n) for n in sizes)


def fixed(number: Any) -> Any:
    """The number itself, with a graph of its own for each value; a list of them."""
    if isinstance(number, list):
        return [fixed(x) for x in number]
    return guard_scalar(number) if type(number) in (int, float) else number
