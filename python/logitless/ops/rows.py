"""The compiled row kernels as one small object, for torch and NumPy alike (DLPack underneath)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logitless import _core

# Width of the core's running state per row, in float64: 64 bytes.
STATE = 8
BLOCK: int = _core.BLOCK


@dataclass(frozen=True)
class Rows:
    """What does not change from one vocabulary tile to the next. Arrays are flat and contiguous."""

    targets: Any  # [n] int64
    mask: Any = None  # [n] bool or None
    row_scale: Any = None  # [n] float64 or None
    scale: float = 1.0
    bias: Any = None  # [V] float32 (float64 for float64 logits) or None
    pre: float = 1.0
    softcap: float = 0.0
    threads: int = 0

    def forward(
        self, tile: Any, state: Any, *, start: int = 0, first: bool = True, extras: bool = False
    ) -> None:
        """Fold logits[:, start : start + width] into state [n, STATE]."""
        _core.row_forward(
            tile, self.targets, state, start=start, first=first, extras=extras, mask=self.mask,
            bias=self.bias, scale=self.scale, row_scale=self.row_scale, pre=self.pre,
            softcap=self.softcap, threads=self.threads,
        )  # fmt: skip

    def finish(self, state: Any, vocab: int, *, row_ids: Any = None, **outputs: Any) -> None:
        """Write logp, entropy, lse (and extras) from the state; raise at the first bad row."""
        _core.row_finish(
            state, self.targets, vocab, mask=self.mask, scale=self.scale,
            row_scale=self.row_scale, row_ids=row_ids, **outputs,
        )  # fmt: skip

    def backward(
        self,
        tile: Any,
        state: Any,
        gradient: Any,
        *,
        start: int = 0,
        g_logp: Any = None,  # [n] float64 or None, and so the next two
        g_entropy: Any = None,
        g_lse: Any = None,
    ) -> None:
        """Write d(logits) of a tile into `gradient`, which may be the tile itself."""
        _core.row_backward(
            tile, self.targets, state, gradient, start=start, g_logp=g_logp, g_entropy=g_entropy,
            g_lse=g_lse, mask=self.mask, bias=self.bias, scale=self.scale,
            row_scale=self.row_scale, pre=self.pre, softcap=self.softcap, threads=self.threads,
        )  # fmt: skip
