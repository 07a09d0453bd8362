"""The numbers of a run: one summary for each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import logitless as ll
from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

# Fewer points than this cannot tell a line from noise.
LAW_POINTS = 5


def summarize(runs: dict[str, list[Row]], head_bytes: Mapping[str, int | None]) -> dict[str, Any]:
    """Per method: the numbers of summary.json. Bytes of the head are None where they were not
    measured.
    """
    return {name: _summarize(rows, head_bytes.get(name)) for name, rows in runs.items() if rows}


def _summarize(rows: list[Row], head_bytes: int | None) -> Row:
    law = fit_law(rows)
    keys = ("a", "b", "ceiling", "r2", "interval")
    return {
        "reward_first": metrics.first(rows, "reward"),
        "reward_last": metrics.last(rows, "reward"),
        "entropy_first": metrics.first(rows, "entropy"),
        "entropy_last": metrics.last(rows, "entropy"),
        "distinct_right_answers_last": metrics.last(rows, "distinct_right_answers"),
        "law": None if law is None else {key: _plain(getattr(law, key)) for key in keys},
        "selected_tokens": sum(metrics.column(rows, "selected_tokens")),
        "seconds": sum(metrics.column(rows, "seconds")),
        "peak_memory_bytes": max(metrics.column(rows, "peak_memory_bytes")),
        "head_memory_bytes": head_bytes,
        "full_logits_bytes": max(metrics.column(rows, "full_logits_bytes")),
    }


def fit_law(rows: list[Row]) -> Any | None:
    entropy = metrics.column(rows, "entropy")
    if len(rows) < LAW_POINTS or len(set(entropy)) == 1:
        return None
    return ll.fit_entropy_law(entropy, metrics.column(rows, "reward"))


def support_rows(runs: dict[str, list[Row]]) -> float | None:
    """Mean share of the rows that tail_mass served, over all methods' steps; None: without it."""
    key = "actor/support_rows"
    shares = [row[key] for rows in runs.values() for row in rows if key in row]
    return statistics.fmean(shares) if shares else None


def _plain(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, (tuple, list)) else float(value)
