"""Rows over sets of the vocabulary on a CUDA device: nothing waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.row_kernels.device import current, stream_of

if TYPE_CHECKING:
    from logitless.backends.row_kernels.rows import Rows


class CudaSets:
    """Kernels of `_core.sets`, on torch's current stream."""

    def logits(self, *csr: Any, hidden: Any, weight: Any, threads: int) -> None:
        _run(_core.sets.cuda_logits, hidden, *csr, hidden=hidden, weight=weight)

    def read_tile(self, *csr: Any, tile: Any, start: int, threads: int) -> None:
        _run(_core.sets.cuda_read_tile, tile, *csr, tile=tile, start=start)

    def write_tile(self, *csr: Any, tile: Any, start: int, threads: int) -> None:
        tile.zero_()
        _run(_core.sets.cuda_write_tile, tile, *csr, tile=tile, start=start)

    def forward(
        self, rows: Rows, offsets: Any, columns: Any, values: Any, *, state: Any, extras: bool
    ) -> None:
        csr = offsets, columns, values
        _queue(_core.sets.cuda_forward, state, (rows,), *csr, state, extras=extras)

    def gradient(self, rows: Rows, *csr: Any, state: Any, **arrays: Any) -> None:
        _queue(_core.sets.cuda_gradient, state, (rows,), *csr, state, **arrays)

    def pair_forward(self, rows: Rows, teacher: Rows, *entries: Any, state: Any) -> None:
        offsets, _, *both = entries
        function = _core.divergence.cuda_entries_forward
        _queue(function, state, (rows, teacher), offsets, *both, state)

    def pair_mix(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, sums: Any, beta: float
    ) -> None:
        offsets, _, *both = entries
        function = _core.divergence.cuda_entries_mix
        _queue(function, state, (rows, teacher), offsets, *both, state, sums, beta=beta)

    def pair_gradient(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, out: Any, **how: Any
    ) -> None:
        offsets, _, *both = entries
        function = _core.divergence.cuda_entries_gradient
        _queue(function, state, (rows, teacher), offsets, *both, state, out, **how)


def _run(function: Callable[..., None], like: Any, *arguments: Any, **named: Any) -> None:
    device = like.device
    with current(device):
        function(*arguments, **named, device=device.index or 0, stream=stream_of(device))


def _queue(
    function: Callable[..., None], like: Any, sides: tuple[Rows, ...], *arguments: Any, **named: Any
) -> None:
    """A function of rows, the student's before the teacher's."""
    device = like.device
    with current(device):
        cores = (_core.rows.CudaRows(**x.shared, device=device.index or 0) for x in sides)
        function(*cores, *arguments, **named, stream=stream_of(device))
