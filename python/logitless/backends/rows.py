"""The row kernels as one small object, for torch and NumPy alike, on every backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from logitless import _core
from logitless.backends.cores import CORES
from logitless.backends.topk import Candidates

# Width of the core's running state per row, in float64: 64 bytes. And of its sampling state.
STATE = 8
SAMPLE_STATE = 2
BLOCK: int = _core.rows.BLOCK


@dataclass(frozen=True)
class Rows:
    """What does not change from one vocabulary tile to the next. Arrays are flat and contiguous.

    On a device (backend "cuda" or "triton") nothing waits: calls queue work on the current stream,
    and bad rows are named later, see device_errors.py.
    """

    n: int
    targets: Any = None  # [n] int64; None only while sampling
    mask: Any = None  # [n] bool or None
    row_scale: Any = None  # [n] float64 or None
    scale: float = 1.0
    bias: Any = None  # [V] float32 (float64 for float64 logits) or None
    pre: float = 1.0
    softcap: float = 0.0
    threads: int = 0
    backend: str = "cpu"
    op: str = ""  # named where a bad row is found after the call

    @cached_property
    def core(self) -> Any:
        return CORES[self.backend](self)

    def gather(self, index: Any) -> Rows:
        """The rows at `index`, all of them active; None: as they are."""
        if index is None:
            return self
        row_scale = None if self.row_scale is None else self.row_scale[index]
        targets = self.targets[index]
        return replace(self, n=len(index), targets=targets, mask=None, row_scale=row_scale)

    def part(self, chunk: slice) -> Rows:
        """These rows of a call without a mask."""
        targets = None if self.targets is None else self.targets[chunk]
        row_scale = None if self.row_scale is None else self.row_scale[chunk]
        return replace(self, n=chunk.stop - chunk.start, targets=targets, row_scale=row_scale)

    def forward(
        self,
        tile: Any,  # [n, width]
        state: Any,  # [n, STATE] float64
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        candidates: Candidates | None = None,
    ) -> None:
        """Fold logits[:, start : start + width] into the state, and keep the largest on the way."""
        kept = {} if candidates is None else {"topk": candidates.core}
        self.core.forward(tile, state, start=start, first=first, extras=extras, **kept)

    def settle(self, state: Any, candidates: Candidates) -> None:
        """After the last tile: leave each row's candidates sorted, largest first."""
        _core.topk.finalize(self.core, state, candidates.core)

    def merge(self, pieces: Any, state: Any) -> None:
        """Write the state over all columns from those of consecutive ranges of them.

        pieces: [ranges, n, STATE], in the order of the columns; their argmax is global already.
        """
        if self.backend == "cpu":
            self.core.merge(pieces, state)
            return
        from logitless.backends.states import merge_states

        state.copy_(merge_states(pieces, self.scale if self.row_scale is None else self.row_scale))

    def finish(self, state: Any, vocab: int, *, row_ids: Any = None, **outputs: Any) -> None:
        """Write logp, entropy, lse (and extras) from the state.

        The first bad row raises, or on a device is flagged.
        """
        if self.backend == "cpu":
            self.core.finalize(state, vocab, row_ids=row_ids, **outputs)
            return
        from logitless.backends.row_errors import flag_temperatures, watched

        with watched(self.op, state.device, vocab) as flag:
            if self.row_scale is not None:
                flag_temperatures(flag, self.row_scale, self.mask, row_ids)
            self.core.finalize(state, vocab, error=flag, row_ids=row_ids, **outputs)

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
        self.core.gradient(
            tile, state, gradient, start=start, g_logp=g_logp, g_entropy=g_entropy, g_lse=g_lse
        )

    def sample(
        self,
        tile: Any,
        state: Any,
        best: Any,  # [n, SAMPLE_STATE] float64: score, token
        *,
        row_ids: Any,  # [n] int64
        seed: int,
        step: int,
        start: int = 0,
        first: bool = True,
    ) -> None:
        """Fold a tile and draw a token on the way; see csrc/cpu/sampling/sample.h."""
        _core.sampling.sample(
            self.core, tile, state, best, row_ids=row_ids, seed=seed, step=step, start=start,
            first=first,
        )  # fmt: skip

    def draw_truncated(
        self,
        state: Any,
        token: Any,  # [n] int64, out
        *,
        candidates: Candidates | None = None,  # settled
        logits: Any = None,  # [n, V] where there are no candidates
        **options: Any,
    ) -> None:
        """Draw from the top of each row; a token of -1 says that its candidates do not suffice."""
        topk = None if candidates is None else candidates.core
        _core.sampling.draw_truncated(self.core, state, token, topk=topk, logits=logits, **options)
