"""The rewards of several functions, beside each other."""

from __future__ import annotations

from typing import Any

from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

# What their keys in the metrics begin with.
PREFIX = "reward/"


def reward_columns(rows: list[Row]) -> dict[str, list[float]]:
    """Of each function its mean at the start and at the end; empty where there is one reward."""
    keys = [key for key in rows[0] if key.startswith(PREFIX)]
    return {
        key.removeprefix(PREFIX): [metrics.first(rows, key), metrics.last(rows, key)]
        for key in keys
        if all(key in row for row in rows)
    }


def rewards_table(summary: dict[str, Any]) -> list[list[str]]:
    """A row a method; none where no method has several rewards."""
    of_methods = {name: row.get("rewards", {}) for name, row in summary.items()}
    titles = list(dict.fromkeys(title for found in of_methods.values() for title in found))
    if not titles:
        return []
    return [
        ["rewards, before their weights", *titles],
        *[
            [name, *[_cell(found.get(title)) for title in titles]]
            for name, found in of_methods.items()
        ],
    ]


def _cell(ends: list[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.3f} → {ends[1]:.3f}"
