"""Metrics as JSON lines, the means a summary quotes, and a stopwatch for the parts of a step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# "first" and "last" of a summary are means over this many steps at either end.
WINDOW = 5


def append(path: Path, row: Row) -> None:
    """One line, whole on disk before the call returns: a killed run keeps every finished step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def keep_before(path: Path, step: int) -> list[Row]:
    """Drops what a resumed run will write again; returns the rest."""
    rows = [row for row in read(path) if row["step"] < step]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return rows


def column(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows]


def first(rows: list[Row], key: str) -> float:
    return _mean(column(rows[:WINDOW], key))


def last(rows: list[Row], key: str) -> float:
    return _mean(column(rows[-WINDOW:], key))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Stopwatch:
    """Seconds by name: `with clock("optimizer"): ...` adds to clock.seconds["optimizer"]."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
