"""The policy loss, and the selection of tokens."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from logitless._core import Array

SUM_WORDS: int

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

class Surrogate(enum.Enum):  # type: ignore[misc]  # no members here
    """Those of kSurrogates in csrc/core/token_loss.h, read by name."""

LOSS_SUMS: int

class LossParams:
    def __init__(
        self,
        *,
        surrogate: Surrogate,
        constants: Sequence[float],
        ratio_low: float,
        ratio_high: float,
        log_low: float,
        log_high: float,
        ratio_dual: float,
        log_dual: float,
        positive: float,
        negative: float,
        control: Control,
        penalty_estimator: KlEstimator,
        penalty_straight_through: bool,
        kl_estimator: KlEstimator,
        kl_straight_through: bool,
        kl_weight: KlWeight,
        entropy_target: float,
    ) -> None: ...

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
    entropy_coefficient: float,
    kl_coefficient: float,
    penalty_coefficient: float,
    params: LossParams,
    sums: Array,
    mask: Array | None = None,
    weight: float = 0.0,
    penalty_logp: Array | None = None,
    log_ratio: Array | None = None,
    factor: Array | None = None,
    precomputed_loss: Array | None = None,
    precomputed_slope: Array | None = None,
    g_policy: Array | None = None,
    log_low: float | None = None,
    log_high: float | None = None,
    threads: int = 0,
) -> None: ...
def value_sums(
    logp: Array, advantages: Array, mask: Array | None, sums: Array, threads: int = 0
) -> int: ...
def value_means(sums: Array) -> tuple[float, float, int, int, int]: ...
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
def repeated_id(ids: Array, mask: Array, threads: int = 0) -> int | None: ...
def members(ids: Array, sorted: Array, out: Array, threads: int = 0) -> None: ...
def philox(x: int, y: int, seed: int) -> tuple[int, int, int, int]: ...

LOSS_TOKENS: int
CUDA_SUM_WORDS: int
COVARIANCE_WORDS: int
QUANTILES: int
MOST_NUMBERS: int

class CudaTokens:
    def __init__(self, device: int = 0) -> None: ...
    def value_sums(
        self,
        first: Array,
        second: Array,
        mask: Array,
        words: Array,
        flag: Array,
        stream: int = 0,
    ) -> None: ...
    def sum_means(self, words: Array, means: Array, stream: int = 0) -> None: ...
    def covariance_scores(
        self,
        logp: Array,
        advantages: Array,
        mask: Array,
        old_logp: Array | None,
        ids: Array,
        band: dict[str, Any],
        scores: Array,
        out_ids: Array,
        flag: Array,
        stream: int = 0,
    ) -> None: ...
    def ordered_scores(
        self,
        values: Array,
        which: Array,
        ids: Array,
        scores: Array,
        out_ids: Array,
        stream: int = 0,
    ) -> None: ...
    def random_scores(
        self, ids: Array, seed: int, step: int, scores: Array, stream: int = 0
    ) -> None: ...
    def radix_levels(
        self,
        scores: Array,
        ids: Array,
        k: Array | int,
        bins: Array,
        states: Array,
        first: int,
        last: int,
        exact: bool,
        stream: int = 0,
    ) -> None: ...
    def radix_take(
        self,
        scores: Array,
        ids: Array,
        k: Array | int,
        bins: Array,
        states: Array,
        taken: Array,
        flag: Array,
        stream: int = 0,
    ) -> None: ...
    def members(self, ids: Array, sorted: Array, out: Array, stream: int = 0) -> None: ...
    def unique_ids(
        self, ids: Array, mask: Array, table: Array, flag: Array, stream: int = 0
    ) -> None: ...
    def flag_tokens(
        self, good: Array, places: Array | None, flag: Array, stream: int = 0
    ) -> None: ...
    def sort_ids(
        self, ids: Array, found: Array, room: Array, out: Array, stream: int = 0
    ) -> None: ...
    def covariance_sums(
        self,
        logp: Array,
        advantages: Array,
        mask: Array,
        mean_advantage: Array | float,
        mean_logp: Array | float,
        above: float,
        scores: Array,
        words: Array,
        flag: Array,
        stream: int = 0,
    ) -> None: ...
    def covariance_means(self, words: Array, out: Array, stream: int = 0) -> None: ...
    def quantile_levels(
        self,
        scores: Array,
        count: Array,
        shares: Sequence[float],
        bins: Array,
        states: Array,
        out: Array,
        first: int,
        last: int,
        stream: int = 0,
    ) -> None: ...
    def collect_numbers(
        self, numbers: Sequence[Array | float], out: Array, stream: int = 0
    ) -> None: ...
    def count_shares(
        self,
        count: Array,
        fraction: float,
        inverse: Array | None,
        part: Array | None,
        stream: int = 0,
    ) -> None: ...
    def loss_outputs(
        self,
        sums: Array,
        tokens: int,
        total: Array | int | None,
        metrics: Sequence[tuple[int, bool]],
        loss: Array,
        out: Array,
        stream: int = 0,
    ) -> None: ...
    def fold_sequences(
        self,
        ends: Array,
        mask: Array,
        values: Array,
        largest: bool,
        out: Array,
        stream: int = 0,
    ) -> None: ...
    def exp(self, x: Array, out: Array, stream: int = 0) -> None: ...
    def token_loss(
        self,
        *,
        logp: Array,
        old_logp: Array | None,
        advantages: Array,
        weights: Array | None,
        entropy: Array | None,
        kl_logp: Array | None,
        selected: Array | None,
        g_logp: Array,
        g_entropy: Array | None,
        mean_advantage: Array | float,
        mean_logp: Array | float,
        grad_scale: float,
        entropy_coefficient: Array | float,
        kl_coefficient: float,
        penalty_coefficient: float,
        params: LossParams,
        sums: Array,
        mask: Array | None,
        weight: Array | float,
        penalty_logp: Array | None,
        log_ratio: Array | None,
        factor: Array | None,
        precomputed_loss: Array | None,
        precomputed_slope: Array | None,
        g_policy: Array | None,
        log_low: Array | float | None,
        log_high: Array | float | None,
        blocks: Array,
        flag: Array,
        stream: int = 0,
    ) -> None: ...
