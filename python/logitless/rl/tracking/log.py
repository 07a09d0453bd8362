"""Everything that a method's training writes down step by step: JSON lines always, and the trackers
that the recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from logitless.rl.tracking import completions, files, metrics
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.trackers import Feed, Run

# In the order that a tracker is told of them: a policy is evaluated before its next step.
EVALUATION, STEP = 0, 1
PREFIX = ("evaluation/", "")


class Kept(NamedTuple):
    """What a resumed run has of before."""

    rows: list[Row]
    evaluations: list[Row]


class Log:
    """`log.begin(start); log.step(row, answers); log.evaluation(row)`; last `close()`.

    Nothing is opened or written before `begin`.
    """

    def __init__(self, folder: Path, run: Run, trackers: Sequence[str]) -> None:
        """folder: the method's; trackers: names of TRACKERS."""
        self.folder = folder
        self._run, self._trackers = run, trackers
        self._feed: Feed | None = None

    def begin(self, start: int) -> Kept:
        """Drops what a resumed run will write again; trackers are told what they lack of the
        rest."""
        files.make(self.folder)
        kept = Kept(
            metrics.keep_before(self.folder / metrics.FILE, start),
            # those after a step have its number of steps done
            metrics.keep_before(self.folder / metrics.EVALUATION_FILE, start + 1),
        )
        metrics.keep_before(self.folder / completions.FILE, start)
        self._feed = Feed(self._trackers, self.folder, self._run)
        told = [(row["step"], EVALUATION, row) for row in kept.evaluations]
        told += [(row["step"], STEP, row) for row in kept.rows]
        for _, kind, row in sorted(told, key=lambda one: one[:2]):
            self._tell(kind, row)
        return kept

    def step(self, row: Row, answers: Sequence[Row]) -> None:
        # before the metrics: a step that has its line has its answers
        metrics.append(self.folder / completions.FILE, *answers)
        metrics.append(self.folder / metrics.FILE, row)
        self._tell(STEP, row)

    def evaluation(self, row: Row) -> None:
        metrics.append(self.folder / metrics.EVALUATION_FILE, row)
        self._tell(EVALUATION, row)

    def _tell(self, kind: int, row: Row) -> None:
        if self._feed is not None:
            named = metrics.numbers(row).items()
            numbers = {PREFIX[kind] + key: value for key, value in named if key != "step"}
            self._feed.tell(numbers, row["step"], 2 * row["step"] + kind)

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()
