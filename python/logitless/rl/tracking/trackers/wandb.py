"""Weights & Biases, and trackio, whose functions have the same names.

Where the numbers go the service's own settings say: WANDB_MODE=offline, TRACKIO_DIR and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from logitless.rl.tracking.trackers.base import Run


class Wandb:
    def __init__(self, module: Any, run: Run, folder: Path, id: str) -> None:
        self._run = module.init(
            project=run.project,
            group=run.group,
            name=run.name,
            config=dict(run.config),
            dir=str(folder),
            id=id,
            resume="allow",
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio(Wandb):
    def __init__(self, module: Any, run: Run, folder: Path, id: str) -> None:
        self._run = module.init(
            project=run.project,
            group=run.group,
            # a run is resumed by its name, there
            name=f"{run.name}-{id}",
            config=dict(run.config),
            resume="allow",
        )
