"""The compiled core on the CPU: tensors and NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.base import Backend
from logitless.backends.machine import CPU
from logitless.backends.token_kernels.cpu import CPU_TOKENS

if TYPE_CHECKING:
    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.row_kernels.topk import TopK


class CpuRows:
    """The row kernels of `_core.rows.Rows`."""

    def __init__(self, rows: Rows) -> None:
        self.core = core = _core.rows.Rows(**rows.shared, threads=rows.threads)
        self.forward: Any = core.forward
        self.merge: Any = core.merge
        self.finalize: Any = core.finalize
        self.gradient: Any = core.gradient


class CpuTopK:
    """Entries that `_core.rows.Rows.forward` has kept."""

    def bind(self, topk: TopK) -> _core.topk.TopK:
        return _core.topk.TopK(**topk.arrays)

    def recapture(self, rows: Rows, tile: Any, state: Any, topk: TopK, **place: Any) -> None:
        _core.topk.recapture(_core_of(rows), tile, state, topk.bound(self), **place)

    def finalize(self, rows: Rows, state: Any, topk: TopK) -> None:
        _core.topk.finalize(_core_of(rows), state, topk.bound(self))

    def measure(self, rows: Rows, state: Any, topk: TopK, **outputs: Any) -> None:
        _core.topk.measure(_core_of(rows), state, topk.bound(self), **outputs)

    def gradient(self, rows: Rows, state: Any, topk: TopK, **arrays: Any) -> None:
        _core.topk.sparse_gradient(_core_of(rows), state, topk.bound(self), **arrays)

    add_row_sums = staticmethod(_core.topk.sparse_add_row_sums)


class CpuSparse:
    """Products with sparse rows."""

    def transpose(
        self, offsets: Any, columns: Any, values: Any, *, row_names: Any, vocab: int
    ) -> tuple[Any, Any, Any, Any]:
        import torch

        starts = torch.empty(len(values) + 1, dtype=torch.int64)
        names, rows = (torch.empty(len(values), dtype=torch.int32) for _ in range(2))
        transposed = torch.empty_like(values)
        scratch = torch.empty(vocab + 1, dtype=torch.int32)
        n = _core.topk.sparse_transpose(
            offsets, columns, values, row_names=row_names, scratch=scratch, out_offsets=starts,
            out_names=names, out_columns=rows, out_values=transposed,
        )  # fmt: skip
        return starts[: n + 1], rows, transposed, names[:n]

    multiply = staticmethod(_core.topk.sparse_multiply)


class CpuSets:
    """Entries of rows over sets of the vocabulary."""

    def forward(
        self, rows: Rows, offsets: Any, columns: Any, values: Any, *, state: Any, extras: bool
    ) -> None:
        _core.sets.forward(_core_of(rows), offsets, columns, values, state, extras=extras)

    def gradient(self, rows: Rows, *csr: Any, **arrays: Any) -> None:
        _core.sets.gradient(_core_of(rows), *csr, **arrays)

    def pair_forward(self, rows: Rows, teacher: Rows, *entries: Any, state: Any) -> None:
        offsets, columns, own, other = entries
        _core.divergence.entries_forward(
            _core_of(rows), _core_of(teacher), offsets, own, other, state, columns=columns,
            noise=_noise_of(teacher),
        )  # fmt: skip

    def pair_mix(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, sums: Any, beta: float
    ) -> None:
        offsets, columns, own, other = entries
        _core.divergence.entries_mix(
            _core_of(rows), _core_of(teacher), offsets, own, other, state, sums, beta=beta,
            columns=columns, noise=_noise_of(teacher),
        )  # fmt: skip

    def pair_gradient(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, out: Any, **how: Any
    ) -> None:
        offsets, columns, own, other = entries
        _core.divergence.entries_gradient(
            _core_of(rows), _core_of(teacher), offsets, own, other, state, out, columns=columns,
            noise=_noise_of(teacher), **how,
        )  # fmt: skip

    logits = staticmethod(_core.sets.logits)
    read_tile = staticmethod(_core.sets.read_tile)
    write_tile = staticmethod(_core.sets.write_tile)


class CpuSampling:
    """Draws by `_core.sampling`."""

    keeps_largest = True

    def sample(self, rows: Rows, tile: Any, state: Any, best: Any, **noise: Any) -> None:
        _core.sampling.sample(_core_of(rows), tile, state, best, **noise)

    def draw_truncated(
        self, rows: Rows, state: Any, drawn: Any, *, topk: TopK | None = None, **options: Any
    ) -> None:
        kept = None if topk is None else topk.bound(rows.backend.topk)
        _core.sampling.draw_truncated(_core_of(rows), state, drawn, topk=kept, **options)


class CpuDivergence:
    """A student's rows beside a teacher's, by `_core.divergence`."""

    def __init__(self, rows: Rows, teacher: Rows) -> None:
        self.own, self.other = (
            _core.rows.Rows(**x.shared, threads=x.threads) for x in (rows, teacher)
        )
        self.noise = _noise_of(teacher)

    def forward(self, *arrays: Any, **options: Any) -> None:
        _core.divergence.forward(self.own, self.other, *arrays, noise=self.noise, **options)

    def merge(self, parts: Any, state: Any) -> None:
        _core.divergence.merge(self.own, self.other, parts, state)

    def mix(self, *arrays: Any, **options: Any) -> None:
        _core.divergence.mix(self.own, self.other, *arrays, noise=self.noise, **options)

    def finalize(self, state: Any, **outputs: Any) -> None:
        _core.divergence.finalize(self.own, self.other, state, **outputs)

    def gradient(self, *arrays: Any, **options: Any) -> None:
        _core.divergence.gradient(self.own, self.other, *arrays, noise=self.noise, **options)


def _noise_of(teacher: Rows) -> _core.divergence.Noise | None:
    return None if teacher.noise is None else teacher.noise.core


def _core_of(rows: Rows) -> _core.rows.Rows:
    kernels: Any = rows.kernels
    core: _core.rows.Rows = kernels.core
    return core


def _why_not(device: str, dtype: str) -> str:
    return "" if device.split(":")[0] == "cpu" else "it serves CPU tensors"


def _prefers_transposed(dtype: Any) -> bool:
    return str(dtype) == "torch.bfloat16" and _core.rows.prefer_transposed_gemm()


BACKEND = Backend(
    name="cpu",
    why_not=_why_not,
    machine=lambda device: CPU,
    rows=CpuRows,
    topk=CpuTopK(),
    sparse=CpuSparse(),
    sets=CpuSets(),
    sampling=CpuSampling(),
    tokens=lambda device: CPU_TOKENS,
    divergence=CpuDivergence,
    transpose=_core.rows.transpose,
    prefers_transposed=_prefers_transposed,
)
