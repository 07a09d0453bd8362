"""logitless.kernels, wherever Triton runs."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from logitless.backends.base import Backend
from logitless.backends.eager import no_torch
from logitless.backends.gpus import machine_of
from logitless.backends.row_kernels.device import ABSENT, DeviceDivergence, DeviceRows, wrong_dtype
from logitless.backends.row_kernels.triton_sets import TritonSets, TritonSparse, noise_of

if TYPE_CHECKING:
    import torch

    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.row_kernels.topk import TopK
    from logitless.backends.token_kernels.protocol import TokenKernels
    from logitless.kernels.divergence.pair import TritonPair
    from logitless.kernels.rows import TritonRows
    from logitless.kernels.topk.kept import Kept


def _rows(rows: Rows) -> DeviceRows:
    from logitless.kernels.rows import TritonRows

    return DeviceRows(rows, TritonRows(**rows.shared))


def _core_of(rows: Rows) -> TritonRows:
    kernels: Any = rows.kernels
    core: TritonRows = kernels.core
    return core


def _pair(rows: Rows, teacher: Rows, device: torch.device) -> TritonPair:
    from logitless.kernels.divergence.pair import TritonPair

    return TritonPair(rows.shared, teacher.shared, device, noise_of(teacher))


class TritonTopK:
    """The kernels of `logitless.kernels.topk`. `bind` makes the arrays of a call."""

    def bind(self, topk: TopK) -> Kept:
        from logitless.kernels.topk.kept import Kept

        return Kept(**topk.arrays)

    def recapture(self, rows: Rows, tile: Any, state: Any, topk: TopK, **place: Any) -> None:
        _core_of(rows).recapture(tile, state, topk.bound(self), **place)

    def finalize(self, rows: Rows, state: Any, topk: TopK) -> None:
        from logitless.kernels.topk.sort_kept import sort_kept

        sort_kept(_core_of(rows), state, topk.bound(self))

    def measure(self, rows: Rows, state: Any, topk: TopK, **outputs: Any) -> None:
        from logitless.kernels.topk.measure_kept import Economy, measure_kept

        economy = Economy(*(outputs.pop(name) for name in Economy._fields))
        measure_kept(_core_of(rows), state, topk.bound(self), economy, **outputs)

    def gradient(self, rows: Rows, state: Any, topk: TopK, **arrays: Any) -> None:
        from logitless.kernels.topk.kept_gradient import kept_gradient

        kept_gradient(_core_of(rows), state, topk.bound(self), **arrays)

    def add_row_sums(
        self, offsets: Any, columns: Any, values: Any, *, names: Any, out: Any
    ) -> None:
        from logitless.kernels.topk.row_sums import row_sums

        row_sums(offsets, values, names=names, out=out)


class TritonSampling:
    """Draws by Triton's kernels, and from a truncated distribution by torch's sort."""

    keeps_largest = False

    def sample(
        self, rows: Rows, tile: Any, state: Any, best: Any, *, start: int, first: bool, **noise: Any
    ) -> None:
        rows.forward(tile, state, start=start, first=first)
        _core_of(rows).draw(tile, state, best, start=start, first=first, **noise)

    def draw_truncated(
        self, rows: Rows, state: Any, drawn: Any, *, logits: Any = None, **options: Any
    ) -> None:
        from logitless.backends.row_kernels.sorted_draw import (
            Limits,
            draw_from_sorted,
            truncated_numbers,
        )

        limits = Limits(*(options.pop(name) for name in Limits._fields))
        key = [options.pop(name) for name in ("seed", "step", "row_ids")]
        draw_from_sorted(
            rows, state, drawn, logits=logits, limits=limits, numbers=truncated_numbers(*key),
            **options,
        )  # fmt: skip


@functools.cache
def _tokens(device: str) -> TokenKernels:
    import torch

    from logitless.backends.token_kernels.triton_selection import TritonSelection

    return TritonSelection(torch.device(device))


def _why_not(device: str, dtype: str) -> str:
    kind = device.split(":")[0]
    if no_torch():
        return no_torch()
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'logitless[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kind != "cuda" and not (interpreted and kind == "cpu"):
        return "it serves CUDA tensors, and CPU ones in Triton's interpreter (TRITON_INTERPRET=1)"
    return wrong_dtype(dtype)


BACKEND = Backend(
    name="triton",
    why_not=_why_not,
    machine=machine_of,
    rows=_rows,
    topk=TritonTopK(),
    sparse=TritonSparse(),
    sets=TritonSets(),
    sampling=TritonSampling(),
    divergence=lambda rows, teacher: DeviceDivergence(rows, teacher, _pair),
    tokens=_tokens,
    absent=ABSENT,
    asynchronous=True,
)
