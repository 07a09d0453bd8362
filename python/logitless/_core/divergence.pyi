"""Rows under a student's softmax and a teacher's."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.rows import CudaRows, Rows

class Noise:
    def __init__(
        self, row_ids: Array, sizes: Array, *, seed: int, step: int, start: int = 0
    ) -> None: ...

def forward(
    rows: Rows,
    teacher: Rows,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    *,
    start: int = 0,
    first: bool = True,
    noise: Noise | None = None,
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
    noise: Noise | None = None,
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
    noise: Noise | None = None,
) -> None: ...
def entries_forward(
    rows: Rows,
    teacher: Rows,
    offsets: Array,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    *,
    columns: Array | None = None,
    noise: Noise | None = None,
) -> None: ...
def entries_mix(
    rows: Rows,
    teacher: Rows,
    offsets: Array,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    sums: Array,
    *,
    beta: float,
    columns: Array | None = None,
    noise: Noise | None = None,
) -> None: ...
def entries_gradient(
    rows: Rows,
    teacher: Rows,
    offsets: Array,
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
    columns: Array | None = None,
    noise: Noise | None = None,
) -> None: ...
def cuda_entries_forward(
    rows: CudaRows,
    teacher: CudaRows,
    offsets: Array,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    *,
    columns: Array | None = None,
    noise: CudaNoise | None = None,
    stream: int = 0,
) -> None: ...
def cuda_entries_mix(
    rows: CudaRows,
    teacher: CudaRows,
    offsets: Array,
    logits: Array,
    teacher_logits: Array,
    state: Array,
    sums: Array,
    *,
    beta: float,
    columns: Array | None = None,
    noise: CudaNoise | None = None,
    stream: int = 0,
) -> None: ...
def cuda_entries_gradient(
    rows: CudaRows,
    teacher: CudaRows,
    offsets: Array,
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
    columns: Array | None = None,
    noise: CudaNoise | None = None,
    stream: int = 0,
) -> None: ...

class CudaNoise:
    def __init__(
        self,
        row_ids: Array,
        sizes: Array,
        *,
        seed: int,
        step: int,
        start: int = 0,
        device: int = 0,
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
        noise: CudaNoise | None = None,
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
        noise: CudaNoise | None = None,
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
        noise: CudaNoise | None = None,
        stream: int = 0,
    ) -> None: ...
