"""The largest logits of every row, kept while tiles stream by: see csrc/core/topk.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitless import _core

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.base import TopKKernels

# A row's memory: an entry is a float64 and an int32, and there is room for twice what is kept.
ENTRY_BYTES = 12
# Sums over more entries of a row are made of chains of so many.
CHAIN: int = _core.topk.CHAIN


@dataclass(frozen=True)
class TopK:
    """Of [n] rows, room for twice the entries that are kept of each.

    While tiles stream by, in ascending order, `Rows.forward` fills them; after `finalize` the
    first `count[i]` entries of row i are the largest by (value, -id), sorted, of those
    with value > max - margin / scale: at most half of the room.
    """

    # [n, room] float64: y, see csrc/core/row_state.h; on a device float32 numbers. Rows may lie
    # apart, those of ids as far.
    values: Tensor
    ids: Tensor  # [n, room] int32, global vocabulary ids
    threshold: Tensor  # [n] float64
    count: Tensor  # [n] int64
    margin: float = math.inf  # nats

    @classmethod
    def empty(cls, n: int, keep: int, *, margin: float = math.inf, device: Any = "cpu") -> TopK:
        """Memory for `keep` entries of n rows; `Rows.forward` with first=True starts them."""
        import torch

        return cls(
            torch.empty(n, 2 * keep, dtype=torch.float64, device=device),
            torch.empty(n, 2 * keep, dtype=torch.int32, device=device),
            torch.empty(n, dtype=torch.float64, device=device),
            torch.empty(n, dtype=torch.int64, device=device),
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

    def bound(self, kernels: TopKKernels | None) -> Any:
        """As a backend's row kernels take it, of one backend; made once."""
        assert kernels is not None
        if "_bound" not in self.__dict__:
            self.__dict__["_bound"] = kernels.bind(self)
        return self.__dict__["_bound"]

    @property
    def arrays(self) -> dict[str, Any]:
        """What the kernels of every backend are given."""
        names = ("values", "ids", "threshold", "count", "margin")
        return {name: getattr(self, name) for name in names}
