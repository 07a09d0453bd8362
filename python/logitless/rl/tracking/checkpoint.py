"""Atomic checkpoints: a folder is written under another name and renamed, so each one is whole.

Nothing random is saved: every draw of the trainer is a function of (seed, step), so model,
optimizer and step are all there is to continue bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from logitless.rl.tracking import files

PREFIX, PART = "checkpoint-", ".part"
# How many are kept, so that a disk's fault in the newest is not the end of a run.
KEPT = 2


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """folder/checkpoint-STEP, filled by `write(part)`, in between of `begin` and `finish`."""
    part = begin(folder, step)
    with filled(part):
        write(part)
        return finish(part)


def begin(folder: Path, step: int) -> Path:
    """An empty folder, which `finish` makes folder/checkpoint-STEP. What a kill has left of others
    is removed."""
    for old in folder.glob(f"{PREFIX}*{PART}"):
        shutil.rmtree(old, ignore_errors=True)
    part = folder / f"{PREFIX}{step:06d}{PART}"
    files.make(part)
    return part


@contextmanager
def filled(part: Path) -> Iterator[None]:
    """Around what writes into `part`, and `finish`: after an error there is no part, which would
    take the disk's room."""
    try:
        with files.writing(part):
            yield
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def finish(part: Path) -> Path:
    """Gives what `begin` made its name, once it is on the disk; all checkpoints but the newest KEPT
    are removed."""
    folder, final = part.parent, part.with_name(part.name.removesuffix(PART))
    for path in [*part.rglob("*"), part]:
        files.to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    files.to_disk(folder)
    for other in newest_first(folder)[KEPT:]:
        # a kill leaves no half of a checkpoint under its name
        shutil.rmtree(other.rename(f"{other}{PART}"))
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
