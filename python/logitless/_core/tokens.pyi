"""The policy loss, and the selection of tokens."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from logitless._core import Array

SUM_WORDS: int
SUM_DIGITS: int
SUM_LOWEST: int

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
