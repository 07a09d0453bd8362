"""Services that show a run's numbers, beside the JSON lines, which every run has."""

from __future__ import annotations

from logitless.rl.tracking.trackers.base import Run, Tracker
from logitless.rl.tracking.trackers.feed import FILE, TRACKERS, Feed, check_installed
from logitless.rl.tracking.trackers.tensorboard import EVENTS

__all__ = ["FILES", "FOLDERS", "TRACKERS", "Feed", "Run", "Tracker", "check_installed"]

# What they leave in a method's folder, as patterns.
FILES, FOLDERS = (FILE, EVENTS), ("wandb",)
