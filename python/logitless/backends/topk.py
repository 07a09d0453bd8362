"""The largest logits of every row, kept while tiles stream by: see csrc/cpu/topk/topk.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from logitless import _core

if TYPE_CHECKING:
    from torch import Tensor

# Entries per row that a backward may be served from, and the target.
KEPT = 64
# A row's memory: an entry is a float64 and an int32, and there is room for twice what is kept.
ENTRY_BYTES = 12


@dataclass(frozen=True)
class Candidates:
    """Of [n] rows, `room` entries each, half of which are kept; CPU only.

    While tiles stream by, in ascending order, `Rows.forward` fills them; after `Rows.settle` the
    first `count[i]` entries of row i are the largest by (y, -id), sorted, of those with
    y > max - tau / scale: at most room / 2 of them.
    """

    y: Tensor  # [n, room] float64
    ids: Tensor  # [n, room] int32, global vocabulary ids
    floor: Tensor  # [n] float64
    count: Tensor  # [n] int64
    tau: float = math.inf  # nats

    @classmethod
    def empty(cls, n: int, keep: int, *, tau: float = math.inf) -> Candidates:
        """Memory for `keep` entries of n rows; `Rows.forward` with first=True starts them."""
        import torch

        return cls(
            torch.empty(n, 2 * keep, dtype=torch.float64),
            torch.empty(n, 2 * keep, dtype=torch.int32),
            torch.empty(n, dtype=torch.float64),
            torch.empty(n, dtype=torch.int64),
            tau,
        )

    def part(self, chunk: slice) -> Candidates:
        return Candidates(
            self.y[chunk], self.ids[chunk], self.floor[chunk], self.count[chunk], self.tau
        )

    @cached_property
    def core(self) -> _core.topk.TopK:
        return _core.topk.TopK(
            values=self.y, ids=self.ids, threshold=self.floor, count=self.count, margin=self.tau
        )
