"""The statistics of rows of logits, and their gradients."""

from __future__ import annotations

from logitless._core import Array
from logitless._core.topk import CudaTopK, TopK

# Width of the vocabulary tiles that are numbered for sampling.
BLOCK: int

class _RowKernels:
    """What a device has no use for it refuses: the CPU workspace, error and stream. `topk` is of
    the same device."""

    def forward(
        self,
        logits: Array,
        state: Array,
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        topk: TopK | CudaTopK | None = None,
        workspace: Array | None = None,
        stream: int = 0,
    ) -> None: ...
    def finalize(
        self,
        state: Array,
        vocab: int,
        *,
        logp: Array,
        entropy: Array,
        lse: Array,
        row_ids: Array | None = None,
        argmax: Array | None = None,
        error: Array | None = None,
        stream: int = 0,
        # LOGITLESS_STATISTICS of csrc/core/moments.h
        **kwargs: Array | None,
    ) -> None: ...
    def gradient(
        self,
        logits: Array,
        state: Array,
        gradient: Array,
        *,
        start: int = 0,
        g_logp: Array | None = None,
        g_entropy: Array | None = None,
        g_lse: Array | None = None,
        stream: int = 0,
    ) -> None: ...

class Rows(_RowKernels):
    def __init__(
        self,
        n: int,
        *,
        targets: Array | None = None,
        mask: Array | None = None,
        row_scale: Array | None = None,
        scale: float = 1.0,
        bias: Array | None = None,
        pre: float = 1.0,
        softcap: float = 0.0,
        threads: int = 0,
    ) -> None: ...
    def merge(self, parts: Array, state: Array) -> None: ...

class CudaRows(_RowKernels):
    def __init__(
        self,
        n: int,
        *,
        targets: Array | None = None,
        mask: Array | None = None,
        row_scale: Array | None = None,
        scale: float = 1.0,
        bias: Array | None = None,
        pre: float = 1.0,
        softcap: float = 0.0,
        device: int = 0,
    ) -> None: ...
    @staticmethod
    def workspace_bytes(n: int, columns: int, itemsize: int) -> int: ...

def exp2(t: Array, out: Array) -> None: ...
def transpose(tile: Array, out: Array, threads: int = 0) -> None: ...
def prefer_transposed_gemm() -> bool: ...
