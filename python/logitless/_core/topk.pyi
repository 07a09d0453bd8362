"""The largest logits of rows, the sparse rows made of them, and products of those."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import CudaRows, Rows

# Terms of one chain of additions.
CHAIN: int

class TopK:
    def __init__(
        self, *, values: Array, ids: Array, threshold: Array, count: Array, margin: float
    ) -> None: ...

class CudaTopK:
    def __init__(
        self,
        *,
        values: Array,
        ids: Array,
        threshold: Array,
        count: Array,
        margin: float,
        device: int = 0,
    ) -> None: ...

def finalize(rows: Rows, state: Array, topk: TopK) -> None: ...
def recapture(
    rows: Rows, logits: Array, state: Array, topk: TopK, *, start: int, first: bool
) -> None: ...
def measure(
    rows: Rows,
    state: Array,
    topk: TopK,
    *,
    dropped_mass: Array,
    dropped_entropy: Array,
    wider: Array,
    step: int,
    most: int,
    enough: float,
    slack: float,
) -> None: ...
def sparse_gradient(
    rows: Rows,
    state: Array,
    topk: TopK,
    *,
    index: Array,
    offsets: Array,
    columns: Array,
    values: Array,
    g_logp: Array | None = None,
    g_entropy: Array | None = None,
    g_lse: Array | None = None,
) -> None: ...
def sparse_transpose(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    row_names: Array,
    scratch: Array,
    out_offsets: Array,
    out_names: Array,
    out_columns: Array,
    out_values: Array,
) -> int: ...
def sparse_multiply(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    names: Array,
    dense: Array,
    out: Array,
    add: bool = False,
    threads: int = 0,
) -> None: ...
def sparse_add_row_sums(
    offsets: Array, columns: Array, values: Array, *, names: Array, out: Array
) -> None: ...
def cuda_finalize(rows: CudaRows, state: Array, topk: CudaTopK, stream: int = 0) -> None: ...
def cuda_recapture(
    rows: CudaRows,
    logits: Array,
    state: Array,
    topk: CudaTopK,
    *,
    start: int,
    first: bool,
    stream: int = 0,
) -> None: ...
def cuda_measure(
    rows: CudaRows,
    state: Array,
    topk: CudaTopK,
    *,
    dropped_mass: Array,
    dropped_entropy: Array,
    wider: Array,
    step: int,
    most: int,
    enough: float,
    slack: float,
    stream: int = 0,
) -> None: ...
def cuda_sparse_gradient(
    rows: CudaRows,
    state: Array,
    topk: CudaTopK,
    *,
    index: Array,
    offsets: Array,
    columns: Array,
    values: Array,
    g_logp: Array | None = None,
    g_entropy: Array | None = None,
    g_lse: Array | None = None,
    stream: int = 0,
) -> None: ...
def cuda_sparse_multiply(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    names: Array,
    dense: Array,
    out: Array,
    add: bool = False,
    chains: Array | None = None,
    sums: Array | None = None,
    device: int = 0,
    stream: int = 0,
) -> None: ...
def cuda_sparse_add_row_sums(
    offsets: Array,
    columns: Array,
    values: Array,
    *,
    names: Array,
    out: Array,
    device: int = 0,
    stream: int = 0,
) -> None: ...
