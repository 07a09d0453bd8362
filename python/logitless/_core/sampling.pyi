"""Draws of a token per row, from all of the vocabulary or from its top."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import CudaRows, Rows
from logitless._core.topk import TopK

def sample(
    rows: Rows,
    logits: Array,
    state: Array,
    best: Array,
    *,
    row_ids: Array,
    seed: int,
    step: int,
    start: int = 0,
    first: bool = True,
) -> None: ...
def draw_truncated(
    rows: Rows,
    state: Array,
    token: Array,
    *,
    topk: TopK | None = None,
    logits: Array | None = None,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
    set_sizes: Array | None = None,
    set_ids: Array | None = None,
    row_ids: Array,
    seed: int,
    step: int,
) -> None: ...
def cuda_workspace_bytes(n: int, columns: int) -> int: ...
def cuda_sample(
    rows: CudaRows,
    logits: Array,
    state: Array,
    best: Array,
    *,
    workspace: Array,
    row_ids: Array,
    seed: int,
    step: int,
    start: int = 0,
    first: bool = True,
    stream: int = 0,
) -> None: ...
def cuda_draw_truncated(
    rows: CudaRows,
    logits: Array,
    state: Array,
    token: Array,
    *,
    workspace: Array,
    top_k: int,
    top_p: float,
    min_p: float,
    set_sizes: Array,
    set_bits: Array | None = None,
    kept_logp: Array,
    row_ids: Array,
    seed: int,
    step: int,
    stream: int = 0,
) -> None: ...
