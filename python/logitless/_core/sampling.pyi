"""Draws of a token per row, from all of the vocabulary or from its top."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import Rows
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
