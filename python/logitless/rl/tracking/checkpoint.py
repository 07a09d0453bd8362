"""Atomic checkpoints: a folder is written under another name and renamed, so each one is whole.

What is the same in all of them, the tokenizer, is written once: each has links to it.

Nothing random is saved: every draw of the trainer is a function of (seed, step), so model,
optimizer and step are all there is to continue bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from logitless.rl.tracking import files

PREFIX, PART = "checkpoint-", ".part"
# Beside the checkpoints of a method.
TOKENIZER = "tokenizer"
# What a method's folder has of them, as patterns.
FOLDERS = (f"{PREFIX}*", TOKENIZER, f"{TOKENIZER}{PART}")


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """The only one: folder/checkpoint-STEP, filled by `write(part)`."""
    part = begin(folder, step)
    with filled(part):
        write(part)
        return finish(part, keep=1)


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


def link_tokenizer(part: Path, write: Callable[[Path], None]) -> None:
    """Its files in `part`: links to those that `write(folder)` makes for the first checkpoint. They
    take no room, and stay what they are where others are removed or copied."""
    home = part.with_name(TOKENIZER)
    if not home.is_dir():
        making = home.with_name(f"{TOKENIZER}{PART}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        write(making)
        for path in [*making.rglob("*"), making]:
            files.to_disk(path)
        making.rename(home)
    for source in sorted(home.rglob("*")):
        to = part / source.relative_to(home)
        if source.is_dir():
            to.mkdir()
            continue
        try:
            os.link(source, to)
        except OSError:
            # there are disks without links
            shutil.copy2(source, to)


def finish(part: Path, keep: int) -> Path:
    """Gives what `begin` made its name, once it is on the disk; all checkpoints but the newest
    `keep` are removed."""
    folder, final = part.parent, part.with_name(part.name.removesuffix(PART))
    for path in [*part.rglob("*"), part]:
        files.to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    files.to_disk(folder)
    for other in newest_first(folder)[keep:]:
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
