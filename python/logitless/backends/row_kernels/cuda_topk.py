"""The largest logits of rows on a CUDA device, and sparse gradients made of them: nothing waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.row_kernels.device import current, stream_of
from logitless.backends.row_kernels.sorted_transpose import sorted_transpose
from logitless.backends.row_kernels.topk import CHAIN

if TYPE_CHECKING:
    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.row_kernels.topk import TopK


class CudaTopK:
    """Kernels of `_core.topk`, on torch's current stream."""

    def bind(self, topk: TopK) -> _core.topk.CudaTopK:
        device = topk.values.device
        with current(device):
            return _core.topk.CudaTopK(**topk.arrays, device=device.index or 0)

    def recapture(self, rows: Rows, tile: Any, state: Any, topk: TopK, **place: Any) -> None:
        function = _core.topk.cuda_recapture
        _run(function, state, _core_of(rows), tile, state, topk.bound(self), **place)

    def finalize(self, rows: Rows, state: Any, topk: TopK) -> None:
        _run(_core.topk.cuda_finalize, state, _core_of(rows), state, topk.bound(self))

    def measure(self, rows: Rows, state: Any, topk: TopK, **outputs: Any) -> None:
        _run(_core.topk.cuda_measure, state, _core_of(rows), state, topk.bound(self), **outputs)

    def gradient(self, rows: Rows, state: Any, topk: TopK, **arrays: Any) -> None:
        function = _core.topk.cuda_sparse_gradient
        _run(function, state, _core_of(rows), state, topk.bound(self), **arrays)

    def add_row_sums(
        self, offsets: Any, columns: Any, values: Any, *, names: Any, out: Any
    ) -> None:
        _run(
            _core.topk.cuda_sparse_add_row_sums, out, offsets, columns, values, names=names,
            out=out, device=out.device.index or 0,
        )  # fmt: skip


class CudaSparse:
    """Products with sparse rows. No kernel adds by atomics."""

    transpose = staticmethod(sorted_transpose)

    def multiply(
        self, offsets: Any, columns: Any, values: Any, *, names: Any, dense: Any, out: Any,
        add: bool, threads: int,
    ) -> None:  # fmt: skip
        chains = _chains(offsets, len(values), dense)
        _run(
            _core.topk.cuda_sparse_multiply, dense, offsets, columns, values, names=names,
            dense=dense, out=out, add=add, device=dense.device.index or 0, **chains,
        )  # fmt: skip


def _run(function: Any, like: Any, *arguments: Any, **named: Any) -> None:
    with current(like.device):
        function(*arguments, **named, stream=stream_of(like.device))


def _chains(offsets: Any, entries: int, dense: Any) -> dict[str, Any]:
    """Memory for the sums of long rows; what the kernels make of a row without does not change. A
    row has at most one entry of each row of `dense`."""
    import torch

    if min(entries, len(dense)) <= CHAIN:
        return {}
    counts = offsets.diff()
    chains = torch.where(counts > CHAIN, (counts + CHAIN - 1) // CHAIN, 0).cumsum(0)
    slots = 2 * entries // CHAIN
    return {"chains": chains, "sums": dense.new_empty(slots, dense.shape[1], dtype=torch.float32)}


def _core_of(rows: Rows) -> _core.rows.CudaRows:
    kernels: Any = rows.kernels
    core: _core.rows.CudaRows = kernels.core.rows
    return core
