"""The largest logits of every row, kept while tiles stream by: see csrc/cpu's topk.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from logitless import _core

if TYPE_CHECKING:
    from torch import Tensor

# A row's memory: an entry is a float64 and an int32, and there is room for twice what is kept.
ENTRY_BYTES = 12


@dataclass(frozen=True)
class TopK:
    """Of [n] rows, room for twice the entries that are kept of each; CPU only.

    While tiles stream by, in ascending order, `Rows.forward` fills them; after `finalize` the
    first `count[i]` entries of row i are the largest by (value, -id), sorted, of those
    with value > max - margin / scale: at most half of the room.
    """

    values: Tensor  # [n, room] float64: y, see csrc/core/row_state.h
    ids: Tensor  # [n, room] int32, global vocabulary ids
    threshold: Tensor  # [n] float64
    count: Tensor  # [n] int64
    margin: float = math.inf  # nats

    @classmethod
    def empty(cls, n: int, keep: int, *, margin: float = math.inf) -> TopK:
        """Memory for `keep` entries of n rows; `Rows.forward` with first=True starts them."""
        import torch

        return cls(
            torch.empty(n, 2 * keep, dtype=torch.float64),
            torch.empty(n, 2 * keep, dtype=torch.int32),
            torch.empty(n, dtype=torch.float64),
            torch.empty(n, dtype=torch.int64),
            margin,
        )

    def part(self, chunk: slice) -> TopK:
        return TopK(
            self.values[chunk],
            self.ids[chunk],
            self.threshold[chunk],
            self.count[chunk],
            self.margin,
        )

    @cached_property
    def core(self) -> _core.topk.TopK:
        return _core.topk.TopK(
            values=self.values, ids=self.ids, threshold=self.threshold, count=self.count,
            margin=self.margin,
        )  # fmt: skip
