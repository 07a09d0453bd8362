"""Two runs that differ in the number of their ranks, and in nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from logitless.rl.tracking import checkpoint, completions, metrics
from tests.support.recipes import tiny_file

# Rounding of gradients, of which AdamW makes steps; losses are of order 1.
LOSS = 1e-6
# Columns that begin like this are of the machine.
CLOCKS = ("seconds", "tokens_per_second", "peak_memory_bytes")


@contextmanager
def home_in(folder: Path) -> Iterator[Path]:
    """The current folder, where everything runs, with the file of a tiny recipe."""
    tiny_file(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def assert_alike(found: Path, expected: Path, methods: Sequence[str], steps: int = 4) -> None:
    """Tokens are the same, numbers but for rounding, and times are not compared."""
    import torch

    for method in methods:
        answers = [metrics.read(at / method / completions.FILE) for at in (found, expected)]
        keys = ("step", "prompt", "completion", "reward", "tokens")
        texts = [[[row[key] for key in keys] for row in rows] for rows in answers]
        assert texts[0] == texts[1] != [], method
        for file in (metrics.FILE, metrics.EVALUATION_FILE):
            rows = [metrics.read(at / method / file) for at in (found, expected)]
            assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
            for mine, other in zip(*rows, strict=True):
                assert_rows_alike(mine, other)
        tensors = [last_weights(at / method, steps) for at in (found, expected)]
        assert tensors[0].keys() == tensors[1].keys()
        for name, value in tensors[1].items():
            torch.testing.assert_close(tensors[0][name], value, atol=2e-4, rtol=0)


def assert_rows_alike(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert row.keys() == expected.keys()
    for key, value in expected.items():
        if not key.startswith(CLOCKS):
            bound = LOSS if key.endswith("loss") else 1e-4
            is_number = isinstance(value, int | float)
            wanted = pytest.approx(value, rel=bound, abs=bound) if is_number else value
            assert row[key] == wanted, (row["step"], key)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def assert_same(found: Path, expected: Path, methods: Sequence[str]) -> None:
    """Bit for bit, but for times."""
    for method in methods:
        for file in (metrics.FILE, completions.FILE, metrics.EVALUATION_FILE):
            rows = [timeless(metrics.read(at / method / file)) for at in (found, expected)]
            assert rows[0] == rows[1], (found, method, file)
        saved = [checkpoint.newest_first(at / method) for at in (found, expected)]
        # a kill before the oldest is removed leaves it until the next one is written
        assert {x.name for x in saved[0]} >= {x.name for x in saved[1]} != set()
        assert saved[0][0].name == saved[1][0].name
        for file in ("model.safetensors", "optimizer.safetensors"):
            mine, other = ((at[0] / file).read_bytes() for at in saved)
            assert mine == other, (found, method, file)


def last_weights(folder: Path, steps: int) -> dict[str, Any]:
    """Of a method's last checkpoint, which is after so many steps: the model's, or adapters."""
    from safetensors.torch import load_file

    saved = checkpoint.latest(folder)
    assert saved is not None and saved.name == f"checkpoint-{steps:06d}"
    files = [saved / name for name in ("model.safetensors", "adapter_model.safetensors")]
    (only,) = (file for file in files if file.exists())
    found: dict[str, Any] = load_file(only)
    return found


def half_way(run: Path, to: Path, methods: Sequence[str]) -> str:
    """A copy as it was when a checkpoint of two of its four steps was the newest."""
    shutil.copytree(run, to)
    for method in methods:
        shutil.rmtree(to / method / "checkpoint-000004")
    return to.name
