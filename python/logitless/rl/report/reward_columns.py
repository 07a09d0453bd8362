"""The rewards of several functions, beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

# What the keys of their means and of their standard deviations begin with.
PREFIX, SPREAD = "reward/", "reward_std/"


def reward_columns(rows: list[Row]) -> dict[str, list[float]]:
    """Of each function its mean at the start and at the end; empty where there is one reward."""
    return {
        key.removeprefix(PREFIX): [metrics.first(rows, key), metrics.last(rows, key)]
        for key in columns_in(rows[:1])
        if all(key in row for row in rows)
    }


def evaluated_rewards_table(evaluations: dict[str, list[Row]]) -> list[list[str]]:
    """A row a method, of its first evaluation and its last: the mean of each function, and its
    standard deviation within the answers to a prompt; none where no method has several rewards."""
    ends = {name: (rows[0], rows[-1]) for name, rows in evaluations.items() if rows}
    keys = dict.fromkeys(key for rows in ends.values() for key in columns_in(rows))
    if not keys:
        return []
    return [
        ["evaluation, before their weights", *(key.removeprefix(PREFIX) for key in keys)],
        *[
            [name, *[" → ".join(_mean_and_spread(row, key) for row in rows) for key in keys]]
            for name, rows in ends.items()
        ],
    ]


def _mean_and_spread(row: Row, key: str) -> str:
    if key not in row:
        return "-"
    spread = row.get(f"{SPREAD}{key.removeprefix(PREFIX)}")
    return f"{row[key]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def columns_in(rows: Iterable[Row]) -> list[str]:
    """The keys of the functions' means."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX)))


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
