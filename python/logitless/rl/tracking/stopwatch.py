"""Seconds of the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name: `with clock("optimizer"): ...` adds to clock.seconds["optimizer"]."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def share(self, share: float, parts: Sequence[str], name: str) -> None:
        """That share of some parts' seconds so far is counted under the name."""
        for part in parts if share else ():
            moved = share * self.seconds.get(part, 0.0)
            if moved:
                self.seconds[part] -= moved
                self.seconds[name] = self.seconds.get(name, 0.0) + moved
