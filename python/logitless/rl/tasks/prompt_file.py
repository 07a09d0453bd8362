"""Prompts of one's own without a class: a file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from logitless.rl.tasks.base import Prompt


class PromptFile:
    """Rows of a JSON Lines file: `prompt`, a text or chat messages, and any other keys."""

    def __init__(self, file: str, key: str = "task.prompts") -> None:
        """key: the recipe's, for errors."""
        self.rows = read_rows(Path(file), key)

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        """n different rows; where there are not as many, all of them again and again."""
        times, rest = divmod(n, len(self.rows))
        rows = [row for _ in range(times) for row in rng.sample(self.rows, len(self.rows))]
        rows += rng.sample(self.rows, rest)
        return [Prompt(row["prompt"], _others(row)) for row in rows]


def read_rows(path: Path, key: str) -> list[dict[str, Any]]:
    """ValueError with file and line where a line is no such row."""
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no such file: {path}")
    lines = path.read_text("utf-8").splitlines()
    rows = [_row(f"{path}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{key}: {path} must have at least one row, got none")
    return rows


def _row(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} must be a JSON object, got {line[:80]!r}: {error}") from None
    if not isinstance(row, dict) or not _is_prompt(row.get("prompt")):
        raise ValueError(
            f"{place} must have a prompt: a text, or a list of messages with role and content; "
            f"got {line[:80]!r}"
        )
    return row


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(
            isinstance(message, dict) and {"role", "content"} <= set(message) for message in prompt
        )
    return isinstance(prompt, str) and bool(prompt)


def _others(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "prompt"}
