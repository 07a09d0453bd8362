"""Rows over sets of the vocabulary by Triton's kernels: nothing waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.backends.row_kernels.sorted_transpose import sorted_transpose

if TYPE_CHECKING:
    from logitless.backends.row_kernels.rows import Rows
    from logitless.kernels.arrays import RowArrays


class TritonSparse:
    """Products with sparse rows."""

    transpose = staticmethod(sorted_transpose)

    def multiply(self, *csr: Any, threads: int, **how: Any) -> None:
        from logitless.kernels.sets.sparse_multiply import sparse_multiply

        sparse_multiply(*csr, **how)


class TritonSets:
    """The kernels of `logitless.kernels.sets`."""

    def logits(self, *csr: Any, hidden: Any, weight: Any, threads: int) -> None:
        from logitless.kernels.sets.set_logits import set_logits

        set_logits(*csr, hidden=hidden, weight=weight)

    def read_tile(self, *csr: Any, tile: Any, start: int, threads: int) -> None:
        from logitless.kernels.sets.set_tile import set_tile

        set_tile(*csr, tile=tile, start=start, read=True)

    def write_tile(self, *csr: Any, tile: Any, start: int, threads: int) -> None:
        from logitless.kernels.sets.set_tile import set_tile

        tile.zero_()
        set_tile(*csr, tile=tile, start=start, read=False)

    def forward(self, rows: Rows, *csr: Any, state: Any, extras: bool) -> None:
        from logitless.kernels.sets.set_forward import set_forward

        set_forward(*_of(rows, csr), state, extras=extras)

    def gradient(self, rows: Rows, *csr: Any, state: Any, **arrays: Any) -> None:
        from logitless.kernels.sets.set_gradient import set_gradient

        set_gradient(*_of(rows, csr), state, **arrays)

    def pair_forward(self, rows: Rows, teacher: Rows, *entries: Any, state: Any) -> None:
        from logitless.kernels.sets.set_pair import set_pair

        set_pair(*_pair(rows, teacher, entries), state)

    def pair_mix(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, sums: Any, beta: float
    ) -> None:
        from logitless.kernels.sets.set_pair_mix import set_pair_mix

        set_pair_mix(*_pair(rows, teacher, entries), state, sums, beta=beta)

    def pair_gradient(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, out: Any, **how: Any
    ) -> None:
        from logitless.kernels.sets.set_pair_gradient import set_pair_gradient

        set_pair_gradient(*_pair(rows, teacher, entries), state, out, **how)


def _of(rows: Rows, csr: tuple[Any, ...]) -> tuple[RowArrays, Any, Any]:
    """Rows, their targets and entries as a kernel's launcher takes them."""
    from logitless.kernels.rows import TritonRows
    from logitless.kernels.sets.entries import Entries

    own = TritonRows(**rows.shared)
    return own, own.targets, Entries(*csr)


def _pair(rows: Rows, teacher: Rows, entries: tuple[Any, ...]) -> tuple[Any, Any, Any, Any, Any]:
    """Both sides, the teacher's noise, the entries, and the teacher's values."""
    from logitless.kernels.divergence.pair import TritonPair
    from logitless.kernels.sets.entries import Entries

    *csr, others = entries
    pair = TritonPair(rows.shared, teacher.shared, others.device, noise_of(teacher))
    return pair.student, pair.teacher, pair.noise, Entries(*csr), others


def noise_of(teacher: Rows) -> dict[str, Any] | None:
    """As a TritonPair takes that of a teacher's rows."""
    noise = teacher.noise
    if noise is None:
        return None
    return {name: getattr(noise, name) for name in ("seed", "step", "row_ids", "sizes", "start")}
