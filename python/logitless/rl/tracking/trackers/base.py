"""What a tracker is told of a run, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Run(NamedTuple):
    """One method's training, as a service files it."""

    project: str
    # the whole run, of which this is one method
    group: str
    name: str
    # the recipe, as plain values
    config: Mapping[str, Any]


class Tracker(Protocol):
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers by name, at a step no smaller than that of the call before."""

    def close(self) -> None:
        """Returns when all is where it belongs."""
