"""Rows under a student's softmax and a teacher's."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import CudaRows, Rows

def forward(
    rows: Rows,
    teacher: Rows,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    *,
    start: int = 0,
    first: bool = True,
) -> None: ...
def merge(rows: Rows, teacher: Rows, parts: Array, state: Array) -> None: ...
def mix(
    rows: Rows,
    teacher: Rows,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    sums: Array,
    *,
    beta: float,
    start: int = 0,
    first: bool = True,
) -> None: ...
def finalize(
    rows: Rows,
    teacher: Rows,
    state: Array,
    *,
    entropy: Array,
    teacher_entropy: Array,
    reverse_kl: Array,
    forward_kl: Array,
    row_ids: Array | None = None,
) -> None: ...
def gradient(
    rows: Rows,
    teacher: Rows,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    gradient: Array,
    *,
    kind: str,
    beta: float = 0.5,
    sums: Array | None = None,
    g_divergence: Array | None = None,
    g_entropy: Array | None = None,
    start: int = 0,
) -> None: ...

class CudaPair:
    def __init__(self, rows: CudaRows, teacher: CudaRows) -> None: ...
    @staticmethod
    def workspace_bytes(n: int, columns: int) -> int: ...
    def forward(
        self,
        logits: Array,
        teacher_logits: Array,
        state: Array,
        workspace: Array,
        *,
        start: int = 0,
        first: bool = True,
        stream: int = 0,
    ) -> None: ...
    def mix(
        self,
        logits: Array,
        teacher_logits: Array,
        state: Array,
        sums: Array,
        workspace: Array,
        *,
        beta: float,
        start: int = 0,
        first: bool = True,
        stream: int = 0,
    ) -> None: ...
    def finalize(
        self,
        state: Array,
        *,
        entropy: Array,
        teacher_entropy: Array,
        reverse_kl: Array,
        forward_kl: Array,
        error: Array,
        row_ids: Array | None = None,
        stream: int = 0,
    ) -> None: ...
    def gradient(
        self,
        logits: Array,
        teacher_logits: Array,
        state: Array,
        gradient: Array,
        workspace: Array,
        *,
        kind: str,
        beta: float = 0.5,
        sums: Array | None = None,
        g_divergence: Array | None = None,
        g_entropy: Array | None = None,
        start: int = 0,
        stream: int = 0,
    ) -> None: ...
