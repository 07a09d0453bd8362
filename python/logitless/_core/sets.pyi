"""Rows over sets of the vocabulary: logits, states and gradients of their entries alone."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import CudaRows, Rows

def logits(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    hidden: Array,
    weight: Array,
    threads: int = 0,
) -> None: ...
def read_tile(
    offsets: Array, columns: Array, values: Array, *, tile: Array, start: int, threads: int = 0
) -> None: ...
def write_tile(
    offsets: Array, columns: Array, values: Array, *, tile: Array, start: int, threads: int = 0
) -> None: ...
def forward(
    rows: Rows,
    offsets: Array,
    columns: Array,
    values: Array,
    state: Array,
    *,
    extras: bool = False,
) -> None: ...
def gradient(
    rows: Rows,
    offsets: Array,
    columns: Array,
    values: Array,
    state: Array,
    gradient: Array,
    *,
    g_logp: Array | None = None,
    g_entropy: Array | None = None,
    g_lse: Array | None = None,
) -> None: ...
def cuda_logits(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    hidden: Array,
    weight: Array,
    device: int = 0,
    stream: int = 0,
) -> None: ...
def cuda_read_tile(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    tile: Array,
    start: int,
    device: int = 0,
    stream: int = 0,
) -> None: ...
def cuda_write_tile(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    tile: Array,
    start: int,
    device: int = 0,
    stream: int = 0,
) -> None: ...
def cuda_forward(
    rows: CudaRows,
    offsets: Array,
    columns: Array,
    values: Array,
    state: Array,
    *,
    extras: bool = False,
    stream: int = 0,
) -> None: ...
def cuda_gradient(
    rows: CudaRows,
    offsets: Array,
    columns: Array,
    values: Array,
    state: Array,
    gradient: Array,
    *,
    g_logp: Array | None = None,
    g_entropy: Array | None = None,
    g_lse: Array | None = None,
    stream: int = 0,
) -> None: ...
