"""Metrics as JSON lines, and the means that a summary quotes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# In the folder of a method: a line a step, and a line an evaluation.
FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"

# "first" and "last" of a summary are means over this many steps at either end.
WINDOW = 5


def append(path: Path, *rows: Row) -> None:
    """A line each, on disk before the call returns: a killed run keeps every finished step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))


def read(path: Path) -> list[Row]:
    """The rows of a file, or none. A last line that a kill has cut short is none of them."""
    if not path.is_file():
        return []
    *lines, _ = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def keep_before(path: Path, step: int) -> list[Row]:
    """Drops the steps that a resumed run will write again; returns the rest."""
    rows = [row for row in read(path) if row["step"] < step]
    path.write_text(_lines(rows), "utf-8")
    return rows


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbers(row: Row) -> Row:
    """What of a row is a number: an evaluation has more."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float))}


def column(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows]


def first(rows: list[Row], key: str) -> float:
    return _mean(column(rows[:WINDOW], key))


def last(rows: list[Row], key: str) -> float:
    return _mean(column(rows[-WINDOW:], key))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
