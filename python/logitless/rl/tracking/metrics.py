"""Metrics as JSON lines, and the means that a summary quotes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from logitless.rl.tracking import files

Row = dict[str, Any]

# In the folder of a method: a line a step, and a line an evaluation.
FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"

# "first" and "last" of a summary are means over this many steps at either end.
WINDOW = 5


def append(path: Path, *rows: Row) -> None:
    """A line each, on disk before the call returns: a killed run keeps every finished step."""
    files.append(path, _lines(rows))


def read(path: Path) -> list[Row]:
    """The rows of a file, or none. A last line that a kill has cut short is none of them."""
    if not path.is_file():
        return []
    *lines, _ = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def keep_before(path: Path, step: int) -> list[Row]:
    """Cuts off the steps that a resumed run will write again, and a line that a kill has cut short;
    returns the rest, of which nothing is written anew. The file is there afterwards."""
    rows: list[Row] = []
    with files.writing(path), path.open("a+b") as file:
        file.seek(0)
        kept = 0
        for line in file:
            row = json.loads(line) if line.endswith(b"\n") else None
            if row is None or row["step"] >= step:
                break
            rows.append(row)
            kept += len(line)
        file.truncate(kept)
        os.fsync(file.fileno())
    files.to_disk(path.parent)
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
