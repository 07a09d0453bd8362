"""Types of the compiled core. Private: the functions of the logitless package wrap it.

An Array is anything with __dlpack__: a torch tensor or a NumPy array; on the CPU, but for those of
CudaRows. Outputs are given by the caller and written in place. tests/test_stubs.py keeps the
parameters in step with the code.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

class Array(Protocol):
    def __dlpack__(self) -> Any: ...

# Width of the vocabulary tiles that are numbered for sampling.
BLOCK: int

class Candidates:
    def __init__(self, *, y: Array, ids: Array, floor: Array, count: Array, tau: float) -> None: ...

class Rows:
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
    def forward(
        self,
        logits: Array,
        state: Array,
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        candidates: Candidates | None = None,
    ) -> None: ...
    def settle(self, state: Array, candidates: Candidates) -> None: ...
    def measure_support(
        self,
        state: Array,
        candidates: Candidates,
        *,
        mass: Array,
        entropy: Array,
        spare: float,
    ) -> None: ...
    def support_gradient(
        self,
        state: Array,
        candidates: Candidates,
        *,
        index: Array,
        offsets: Array,
        columns: Array,
        values: Array,
        g_logp: Array | None = None,
        g_entropy: Array | None = None,
        g_lse: Array | None = None,
    ) -> None: ...
    def merge(self, pieces: Array, state: Array) -> None: ...
    def finish(
        self,
        state: Array,
        vocab: int,
        *,
        logp: Array,
        entropy: Array,
        lse: Array,
        row_ids: Array | None = None,
        varentropy: Array | None = None,
        sum_p2: Array | None = None,
        entropy_change: Array | None = None,
        argmax: Array | None = None,
    ) -> None: ...
    def backward(
        self,
        logits: Array,
        state: Array,
        gradient: Array,
        *,
        start: int = 0,
        g_logp: Array | None = None,
        g_entropy: Array | None = None,
        g_lse: Array | None = None,
    ) -> None: ...
    def sample(
        self,
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
        self,
        state: Array,
        token: Array,
        *,
        candidates: Candidates | None = None,
        logits: Array | None = None,
        top_k: int,
        top_p: float,
        row_ids: Array,
        seed: int,
        step: int,
    ) -> None: ...

class CudaRows:
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
    def forward(
        self,
        logits: Array,
        state: Array,
        workspace: Array,
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        stream: int = 0,
    ) -> None: ...
    def finish(
        self,
        state: Array,
        vocab: int,
        error: Array,
        *,
        logp: Array,
        entropy: Array,
        lse: Array,
        row_ids: Array | None = None,
        varentropy: Array | None = None,
        sum_p2: Array | None = None,
        entropy_change: Array | None = None,
        argmax: Array | None = None,
        stream: int = 0,
    ) -> None: ...
    def backward(
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

def exp2(t: Array, out: Array) -> None: ...
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

class Control(enum.Enum):
    none = ...
    drop_selected = ...
    penalise_selected = ...
    keep_selected = ...

class KlEstimator(enum.Enum):
    none = ...
    k1 = ...
    k2 = ...
    k3 = ...
    abs = ...
    low_var = ...

class KlWeight(enum.Enum):
    none = ...
    ratio = ...
    score = ...

class Surrogate(enum.Enum):
    clip = ...
    reinforce = ...
    nothing = ...
    cispo = ...
    sapo = ...
    trust_mask = ...
    dro = ...
    vespo = ...
    given = ...

def token_loss(
    *,
    logp: Array,
    old_logp: Array | None,
    advantages: Array,
    weights: Array | None,
    entropy: Array | None,
    kl_logp: Array | None,
    selected: Array | None,
    g_logp: Array | None,
    g_entropy: Array | None,
    mean_advantage: float,
    mean_logp: float,
    grad_scale: float,
    params: dict[str, Any],
    mask: Array | None = None,
    weight: float = 0.0,
    penalty_logp: Array | None = None,
    log_ratio: Array | None = None,
    factor: Array | None = None,
    given_loss: Array | None = None,
    given_slope: Array | None = None,
    g_policy: Array | None = None,
    threads: int = 0,
) -> dict[str, Any]: ...
def value_sums(
    logp: Array, advantages: Array, mask: Array | None, sums: Array, threads: int = 0
) -> int: ...
def covariance_candidates(
    logp: Array,
    advantages: Array,
    mask: Array,
    old_logp: Array | None,
    ids: Array,
    band: dict[str, Any],
    most: int,
    scores: Array,
    out_ids: Array,
    threads: int = 0,
) -> tuple[int, int]: ...
def exp(x: Array, out: Array, threads: int = 0) -> None: ...
def ordered_scores(values: Array, scores: Array, threads: int = 0) -> None: ...
def random_scores(ids: Array, seed: int, step: int, scores: Array, threads: int = 0) -> None: ...
def radix_histogram(
    scores: Array,
    ids: Array,
    prefix_score: int,
    prefix_inverted_id: int,
    level: int,
    bins: Array,
    threads: int = 0,
) -> None: ...

SUM_WORDS: int
SUM_DIGITS: int
SUM_LOWEST: int

def repeated_id(ids: Array, mask: Array, threads: int = 0) -> int | None: ...
def members(ids: Array, sorted: Array, out: Array, threads: int = 0) -> None: ...
def philox(x: int, y: int, seed: int) -> tuple[int, int, int, int]: ...
def build_info() -> dict[str, Any]: ...
def cuda_device_reason(device: int) -> str: ...
def default_threads() -> int: ...
def pool_is_lost() -> bool: ...
def pool_may_be_lost() -> bool: ...
def transpose(tile: Array, out: Array, threads: int = 0) -> None: ...
def turns_pay() -> bool: ...
def spare_bytes() -> int: ...
def release_memory() -> int: ...

class Memory:
    def __init__(self, bytes: int) -> None: ...
