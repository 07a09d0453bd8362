"""Atomic checkpoints: a folder is written under another name and renamed, so each one is whole.

Nothing random is saved: every draw of the trainer is a function of (seed, step), so model,
optimizer and step are all there is to continue bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

PREFIX = "checkpoint-"


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """folder/checkpoint-STEP, filled by `write(part)`; older checkpoints are removed."""
    final = folder / f"{PREFIX}{step:06d}"
    part = folder / f"{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for other in folder.glob(f"{PREFIX}*"):
        if other != final:
            shutil.rmtree(other)
    return final


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    whole = sorted(p for p in folder.glob(f"{PREFIX}*") if not p.name.endswith(".part"))
    return whole[-1] if whole else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))
