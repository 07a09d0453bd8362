"""The part of a vocabulary that this rank holds, as a caller makes it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class VocabShard:
    """Columns [start, stop) of a vocabulary whose others are with the other ranks of a group."""

    group: Any  # torch.distributed process group
    start: int
    stop: int
    ranges: tuple[tuple[int, int], ...]  # start and stop of every rank's columns
    reduce_hidden: bool = True

    @property
    def vocab(self) -> int:
        """The size of the whole vocabulary."""
        return max(stop for _, stop in self.ranges)
