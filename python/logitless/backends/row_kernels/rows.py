"""The rows of a call: pure data, and their kernels on the backend that serves the call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.inputs.records import changed

if TYPE_CHECKING:
    from logitless.backends.base import Backend, RowKernels
    from logitless.backends.row_kernels.noise import RowNoise
    from logitless.backends.row_kernels.topk import TopK

# Width of the running state per row, in float64: 64 bytes. And of the sampling state.
STATE = 8
SAMPLE_STATE = 2
BLOCK: int = _core.rows.BLOCK


@dataclass(frozen=True)
class Rows:
    """What does not change from one vocabulary tile to the next. Arrays are flat and contiguous."""

    backend: Backend
    n: int
    targets: Any = None  # [n] int64; -1 while sampling, None beside a teacher
    mask: Any = None  # [n] bool or None
    row_scale: Any = None  # [n] float64 or None
    scale: float = 1.0
    bias: Any = None  # [V] float32 (float64 for float64 logits) or None
    pre: float = 1.0
    softcap: float = 0.0
    threads: int = 0
    op: str = ""  # named where a bad row is found after the call
    noise: RowNoise | None = None  # of a teacher's rows
    of_sets: bool = False  # whether each has logits of a set of tokens alone

    @cached_property
    def kernels(self) -> RowKernels:
        assert self.backend.rows is not None
        return self.backend.rows(self)

    @property
    def shared(self) -> dict[str, Any]:
        """What the kernels of every backend are made from."""
        names = ("n", "targets", "mask", "row_scale", "scale", "bias", "pre", "softcap")
        return {name: getattr(self, name) for name in names}

    def gather(self, index: Any) -> Rows:
        """The rows at `index`, all of them active; None: as they are."""
        if index is None:
            return self
        row_scale = None if self.row_scale is None else self.row_scale[index]
        targets = None if self.targets is None else self.targets[index]
        noise = None if self.noise is None else self.noise.at(index)
        return changed(
            self, n=index.shape[0], targets=targets, mask=None, row_scale=row_scale, noise=noise
        )

    def part(self, chunk: slice) -> Rows:
        """These rows of a call."""
        if chunk.stop - chunk.start == self.n:
            return self
        targets = None if self.targets is None else self.targets[chunk]
        mask = None if self.mask is None else self.mask[chunk]
        row_scale = None if self.row_scale is None else self.row_scale[chunk]
        noise = None if self.noise is None else self.noise.at(chunk)
        n = chunk.stop - chunk.start
        return changed(self, n=n, targets=targets, mask=mask, row_scale=row_scale, noise=noise)

    def forward(
        self,
        tile: Any,  # [n, width]
        state: Any,  # [n, STATE] float64
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        topk: TopK | None = None,
    ) -> None:
        """Combine logits[:, start : start + width] with the state, and keep the largest of them."""
        kept = {} if topk is None else {"topk": topk.bound(self.backend.topk)}
        self.kernels.forward(tile, state, start=start, first=first, extras=extras, **kept)

    def merge(self, parts: Any, state: Any) -> None:
        """Write the state over all columns from those of consecutive ranges of them.

        parts: [ranges, n, STATE], in the order of the columns; their argmax is global already.
        """
        self.kernels.merge(parts, state)

    def finalize(self, state: Any, vocab: int, *, row_ids: Any = None, **outputs: Any) -> None:
        """Write logp, entropy, lse (and extras) from the state.

        The first bad row raises, or on a device is flagged.
        """
        self.kernels.finalize(state, vocab, row_ids=row_ids, **outputs)

    def gradient(
        self,
        tile: Any,
        state: Any,
        out: Any,
        *,
        start: int = 0,
        g_logp: Any = None,  # [n] float64 or None, and so the next two
        g_entropy: Any = None,
        g_lse: Any = None,
    ) -> None:
        """Write d(logits) of a tile into `out`, which may be the tile itself."""
        self.kernels.gradient(
            tile, state, out, start=start, g_logp=g_logp, g_entropy=g_entropy, g_lse=g_lse
        )
