"""Files that no kill cuts in two, and errors that say what could not be written.

A file that is written anew is a part at first, is put on the disk, and then takes its name: whoever
reads it, after a kill or a power cut too, finds the old one or the new one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = "free some space, and go on with --resume"
ALLOWED = "choose a folder that can be written, by --out, or change its permissions"
# By the number of the system's error.
HELP = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), and go on with --resume",
    errno.EROFS: ALLOWED,
    errno.EACCES: ALLOWED,
    errno.EPERM: ALLOWED,
}


class NotWritten(OSError):
    """A line with the path, its bytes, what the system says, and what helps."""

    # of the process that it ends
    status = os.EX_IOERR


def write(path: Path, text: str) -> None:
    """The file with this text, on the disk when the call returns."""
    content = text.encode()
    with replaced(path, len(content)) as part:
        part.write_bytes(content)


def append(path: Path, text: str) -> None:
    """The file with this text at its end, on the disk when the call returns."""
    content = text.encode()
    with writing(path, len(content)), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced(path: Path, size: int | None = None) -> Iterator[Path]:
    """A file to write, with the suffix of `path`, whose place it takes; size: its bytes."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    with writing(path, size):
        try:
            yield part
            to_disk(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        to_disk(path.parent)


@contextmanager
def writing(place: Path, size: int | None = None) -> Iterator[None]:
    """NotWritten for what the system refuses in here, also where a library tells it as an error of
    its own: those of safetensors and tokenizers end with its number. size: in bytes."""
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        number = number_of(error)
        if number is None:
            raise
        bytes_ = "" if size is None else f", {size:,} bytes"
        help_ = f"; {HELP[number]}" if number in HELP else ""
        raise NotWritten(f"cannot write {place}{bytes_}: {os.strerror(number)}{help_}") from error


def number_of(error: Exception) -> int | None:
    """Of the system's error that this one is of."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])


def make(folder: Path) -> None:
    """The folder, where it is not there."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def to_disk(path: Path) -> None:
    """Returns when a file is on the disk, or a folder's list of names."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
