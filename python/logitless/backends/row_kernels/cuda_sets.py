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
        _queue_pair(_core.divergence.cuda_entries_forward, (rows, teacher), entries, state)

    def pair_mix(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, sums: Any, beta: float
    ) -> None:
        function = _core.divergence.cuda_entries_mix
        _queue_pair(function, (rows, teacher), entries, state, sums, beta=beta)

    def pair_gradient(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, out: Any, **how: Any
    ) -> None:
        function = _core.divergence.cuda_entries_gradient
        _queue_pair(function, (rows, teacher), entries, state, out, **how)


def _run(function: Callable[..., None], like: Any, *arguments: Any, **named: Any) -> None:
    device = like.device
    with current(device):
        function(*arguments, **named, device=device.index or 0, stream=stream_of(device))


def _queue_pair(
    function: Callable[..., None],
    sides: tuple[Rows, Rows],
    entries: tuple[Any, ...],
    state: Any,
    *arrays: Any,
    **named: Any,
) -> None:
    """A function of both rows, with the teacher's noise."""
    offsets, columns, *both = entries
    noise = sides[1].noise
    if noise is not None:
        with current(state.device):
            named |= {"noise": noise.on(state.device.index or 0), "columns": columns}
    _queue(function, state, sides, offsets, *both, state, *arrays, **named)


def _queue(
    function: Callable[..., None], like: Any, sides: tuple[Rows, ...], *arguments: Any, **named: Any
) -> None:
    """A function of rows, the student's before the teacher's."""
    device = like.device
    with current(device):
        cores = (_core.rows.CudaRows(**x.shared, device=device.index or 0) for x in sides)
        function(*cores, *arguments, **named, stream=stream_of(device))
