"""All trackers of a run, each told everything once: also where the run is killed and goes on, goes
on twice, or goes on with a tracker that is new.

A file says how far each of them has been told. A kill between the telling and the file lets one be
told a step twice, with the same numbers.
"""

from __future__ import annotations

import importlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from logitless.rl.tracking import files
from logitless.rl.tracking.trackers import tensorboard
from logitless.rl.tracking.trackers.base import Run, Tracker
from logitless.rl.tracking.trackers.tensorboard import TensorBoard
from logitless.rl.tracking.trackers.wandb import Trackio, Wandb

# In the folder of a method.
FILE = "trackers.json"


class Kind(NamedTuple):
    module: str
    # of the module, the run, the method's folder, and an id
    make: Callable[[Any, Run, Path, str], Tracker]


# By their names in a recipe, which are those of the extras as well.
TRACKERS = {
    "tensorboard": Kind(tensorboard.MODULE, TensorBoard),
    "trackio": Kind("trackio", Trackio),
    "wandb": Kind("wandb", Wandb),
}


def check_installed(names: Sequence[str]) -> None:
    """ModuleNotFoundError for a tracker whose package is missing."""
    for name in names:
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(TRACKERS[name].module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"recipe key 'log_to' has {name}, whose package cannot be imported ({error}): "
            f"pip install 'logitless[{name}]'"
        ) from error


class Feed:
    """`feed.tell(numbers, step, place)`; the `place` of what is told later is larger."""

    def __init__(self, names: Sequence[str], folder: Path, run: Run) -> None:
        self._file = folder / FILE
        known = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        # of a run that goes on the same as before
        self._id = known.get("id") or secrets.token_hex(4)
        self._told: dict[str, int] = known.get("told", {})
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._open[name] = TRACKERS[name].make(_module(name), run, folder, self._id)

    def tell(self, numbers: Mapping[str, float], step: int, place: int) -> None:
        new = [name for name in self._open if place > self._told.get(name, -1)]
        for name in new:
            self._open[name].log(numbers, step)
            self._told[name] = place
        if new:
            self._save()

    def close(self) -> None:
        for tracker in self._open.values():
            tracker.close()

    def _save(self) -> None:
        files.write(self._file, json.dumps({"id": self._id, "told": self._told}) + "\n")
