"""Which metrics a call has, and how they follow from its sums: a table, nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from logitless.backends.token_kernels.protocol import SUMS
from logitless.loss.spec import Correction, PolicyLossSpec

# After SUMS, where the spec has a correction; the last three where it has weights.
CORRECTION_SUMS = ("rejected", "mismatch", "mismatch_k3", "weights", "above", "below")


class Given(NamedTuple):
    """What a call has, beside its spec, that its metrics depend on."""

    old_logp: bool
    rollout_logp: bool
    entropy: bool
    # where the batch is known from: this "call", its "totals" or its "batch"
    known: str


class Metric(NamedTuple):
    name: str
    sum: str
    # a mean over the valid tokens of the batch; else the sum itself, which has the tokens' weights
    per_token: bool
    when: Callable[[PolicyLossSpec, Given], bool]


def _always(spec: PolicyLossSpec, given: Given) -> bool:
    return True


def _corrected(spec: PolicyLossSpec, given: Given) -> bool:
    return spec.correction is not None


def _weighted(spec: PolicyLossSpec, given: Given) -> bool:
    return spec.correction is not None and spec.correction.level is not None


def _has_old(spec: PolicyLossSpec, given: Given) -> bool:
    if spec.ratio == "inference":
        return given.rollout_logp
    return given.old_logp or "old_logp" in spec.needs


def _has_means(spec: PolicyLossSpec, given: Given) -> bool:
    return given.known != "totals" or spec.selects_in_call


METRICS = (
    Metric("actor/pg_clipfrac", "clipped", True, _always),
    Metric("actor/pg_clipfrac_lower", "clipped_lower", True, _always),
    Metric("actor/ppo_kl", "old_minus_new", True, _has_old),
    Metric("actor/cov_mean", "covariance", True, _has_means),
    Metric(
        "actor/cov_selected", "selected", True,
        lambda spec, given: spec.selects or spec.selects_in_call,
    ),
    Metric("actor/entropy", "entropy", True, lambda spec, given: given.entropy),
    Metric("actor/pg_loss", "policy", False, _always),
    Metric("actor/kl_loss", "kl", False, lambda spec, given: spec.kl is not None),
    Metric("rollout_corr/rollout_rs_masked_fraction", "rejected", True, _corrected),
    Metric("rollout_corr/kl", "mismatch", True, _corrected),
    Metric("rollout_corr/k3_kl", "mismatch_k3", True, _corrected),
    Metric("rollout_corr/rollout_is_mean", "weights", True, _weighted),
    Metric("rollout_corr/rollout_is_ratio_fraction_high", "above", True, _weighted),
    Metric("rollout_corr/rollout_is_ratio_fraction_low", "below", True, _weighted),
)  # fmt: skip


class MetricTable(NamedTuple):
    """The metrics of a kind of call: their names, and of each where its sum is and whether it is
    per token."""

    names: tuple[str, ...]
    sums: tuple[tuple[int, bool], ...]


@lru_cache(maxsize=256)
def metric_table(spec: PolicyLossSpec, given: Given) -> MetricTable:
    rows = [metric for metric in METRICS if metric.when(spec, given)]
    places = {name: i for i, name in enumerate((*SUMS, *CORRECTION_SUMS))}
    return MetricTable(
        tuple(metric.name for metric in rows),
        tuple((places[metric.sum], metric.per_token) for metric in rows),
    )


def correction_names(correction: Correction) -> tuple[str, ...]:
    """The metrics of a correction alone, in the order of its sums."""
    number = 3 if correction.level is None else len(CORRECTION_SUMS)
    return tuple(metric.name for metric in METRICS[-len(CORRECTION_SUMS) :])[:number]
