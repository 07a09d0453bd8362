"""TensorBoard: event files in the method's folder, which `tensorboard --logdir RUN` finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from logitless.rl.tracking.trackers.base import Run

MODULE = "torch.utils.tensorboard"
# Of the files that it writes.
EVENTS = "events.out.tfevents.*"


class TensorBoard:
    def __init__(self, module: Any, run: Run, folder: Path, id: str) -> None:
        self._writer = module.SummaryWriter(str(folder))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        # a killed run keeps what it has logged
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
