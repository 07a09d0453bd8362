"""Tensors on disk, of which each rank writes and reads its own share: by
torch.distributed.checkpoint, in safetensors, since nothing in such a file runs.

What is spread over the ranks is a folder with a file of each; what all ranks have is one file. Both
are read on any number of ranks, spread or not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from logitless.rl.engine import ranks
from logitless.rl.engine.shards import is_share, own
from logitless.rl.tracking import files

SUFFIX = ".safetensors"
# Of a folder: the shape of each tensor, so that one is missed whose file is gone; and notes.
INDEX, SHAPES = "index.json", "shapes"
# One entry: safetensors writes several in a random order, and equal states are equal files.
NOTES = "numbers"


class Stored(NamedTuple):
    """What a place has, before a tensor is read."""

    # torch.distributed.checkpoint's
    reader: Any
    # its TensorStorageMetadata, by name
    tensors: dict[str, Any]
    notes: str


def write(tensors: dict[str, Tensor], place: Path, notes: str = "") -> None:
    """The folder `place`, where a tensor is spread; else the first rank's file of that name, with a
    suffix. NotWritten names it, and the bytes it takes. Collective."""
    if any(map(is_share, tensors.values())):
        ranks.first(partial(_write_index, tensors, place, notes))
        ranks.together(partial(_write_shares, tensors, place))
    else:
        ranks.first(partial(_write_whole, tensors, place.with_name(place.name + SUFFIX), notes))


def write_joined(tensors: dict[str, Tensor], file: Path) -> None:
    """A file of whole tensors. The ranks write their shares, which the first joins on the disk: it
    holds a tensor at a time, of those that are spread. Collective."""
    apart = file.with_name(f"{file.name}.apart")
    ranks.together(partial(_write_shares, tensors, apart, join=True))
    ranks.first(partial(_take_joined, apart, file))


def find(place: Path) -> Stored:
    """What `write` wrote there, or transformers: one file, or several with numbers.

    FileNotFoundError, and ValueError where a tensor of its index is not there.
    """
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    spread = place.is_dir()
    parts = sorted(
        place.glob(f"*{SUFFIX}") if spread else place.parent.glob(f"{place.name}*{SUFFIX}")
    )
    if not parts:
        raise FileNotFoundError(f"there is no {place}{SUFFIX}, and no file in {place}{os.sep}")

    class Listed(FileSystem):
        """Beside them lie other files."""

        def ls(self, path: str | os.PathLike[str]) -> list[str]:
            return list(map(str, parts))

    reader = HuggingFaceStorageReader(str(place.parent))
    reader.fs = Listed()
    found = reader.read_metadata().state_dict_metadata
    if not spread:
        with safe_open(parts[0], framework="pt") as file:
            return Stored(reader, found, (file.metadata() or {}).get(NOTES, ""))
    index = json.loads((place / INDEX).read_text("utf-8"))
    _check(place, found, index[SHAPES])
    return Stored(reader, found, index[NOTES])


def read(stored: Stored, into: dict[str, Tensor], place: Path) -> None:
    """Into these tensors; of one that is spread, this rank's share alone is read.

    ValueError names what is missing, or has another shape.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    _check(place, stored.tensors, {name: x.shape for name, x in into.items()})
    if into:
        # each rank for itself, which torch takes for the only one
        with _own_error(0), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({**into}, storage_reader=stored.reader, no_dist=True)


def _check(place: Path, found: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    for name, wanted in shapes.items():
        shape = list(wanted)
        if name not in found:
            raise ValueError(f"{place} must have {name} {shape}, which is missing")
        held = sum(math.prod(chunk.sizes) for chunk in found[name].chunks)
        if list(found[name].size) != shape or held != math.prod(shape):
            raise ValueError(
                f"{place} must have {name} {shape}, of which it has {held} numbers, up to "
                f"{list(found[name].size)}"
            )


def _write_index(tensors: dict[str, Tensor], place: Path, notes: str) -> None:
    place.mkdir()
    shapes = {name: list(x.shape) for name, x in tensors.items()}
    (place / INDEX).write_text(json.dumps({SHAPES: shapes, NOTES: notes}), "utf-8")


def _write_whole(tensors: dict[str, Tensor], file: Path, notes: str) -> None:
    with _writing(tensors, file):
        whole = {name: x.detach().contiguous() for name, x in tensors.items()}
        save_file(whole, file, metadata={NOTES: notes} if notes else None)


def _write_shares(tensors: dict[str, Tensor], folder: Path, join: bool = False) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # its files are on the disk when it returns
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=join)
    with _writing(tensors, folder), _own_error(ranks.number()):
        save({name: x.detach() for name, x in tensors.items()}, storage_writer=writer)


def _take_joined(apart: Path, file: Path) -> None:
    (joined,) = apart.glob(f"*{SUFFIX}")
    joined.replace(file)
    shutil.rmtree(apart)


def _writing(tensors: dict[str, Tensor], place: Path) -> AbstractContextManager[None]:
    """NotWritten names the place and this rank's bytes."""
    return files.writing(place, sum(own(x).numel() * x.element_size() for x in tensors.values()))


@contextmanager
def _own_error(number: int) -> Iterator[None]:
    """Of what torch raises on all ranks where one has failed: no Exception, and the tracebacks of
    all in it. number: this rank's."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        if number in failed.failures:
            raise failed.failures[number][0] from None
        rank = min(failed.failures)
        error = failed.failures[rank][0]
        raise ranks.OtherRank(f"rank {rank}: {type(error).__name__}: {error}") from None
