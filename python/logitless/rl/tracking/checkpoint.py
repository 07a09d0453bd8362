"""Atomic checkpoints: a folder is written under another name and renamed, so each one is whole.

Nothing random is saved: every draw of the trainer is a function of (seed, step), so model,
optimizer and step are all there is to continue bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

PREFIX, PART = "checkpoint-", ".part"
# How many are kept, so that a disk's fault in the newest is not the end of a run.
KEPT = 2


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """folder/checkpoint-STEP, filled by `write(part)`, in between of `begin` and `finish`."""
    part = begin(folder, step)
    write(part)
    return finish(part)


def begin(folder: Path, step: int) -> Path:
    """An empty folder, which `finish` makes folder/checkpoint-STEP."""
    part = folder / f"{PREFIX}{step:06d}{PART}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def finish(part: Path) -> Path:
    """Gives what `begin` made its name, once it is on the disk; all checkpoints but the newest KEPT
    are removed."""
    folder, final = part.parent, part.with_name(part.name.removesuffix(PART))
    for path in [*part.rglob("*"), part]:
        _to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    _to_disk(folder)
    kept = newest_first(folder)[:KEPT]
    for other in folder.glob(f"{PREFIX}*"):
        if other not in kept:
            shutil.rmtree(other)
    return final


def newest_first(folder: Path) -> list[Path]:
    """The whole checkpoints of a run."""
    found = (path for path in folder.glob(f"{PREFIX}*") if not path.name.endswith(PART))
    return sorted(found, reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return next(iter(newest_first(folder)), None)


def resume(folder: Path, read: Callable[[Path], None], say: Callable[[str], None]) -> int:
    """Reads the newest checkpoint that can be read and returns its step; 0 where there is none.

    One that cannot be read is named, and the one before it is tried; ValueError where none can.
    """
    broken = []
    for saved in newest_first(folder):
        try:
            read(saved)
        # whatever a damaged file makes of its reader
        except Exception as error:
            broken.append(f"{saved}: {type(error).__name__}: {error}")
            say(f"cannot read {broken[-1]}")
            continue
        return step_of(saved)
    if broken:
        raise ValueError(f"no checkpoint can be read: {'; '.join(broken)}")
    return 0


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _to_disk(path: Path) -> None:
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
