"""Progress of a run: a live line with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from logitless.rl.tracking.completions import one_line
from logitless.rl.tracking.metrics import Row

# Without a terminal: a line every so many steps, and one for the last.
PLAIN_EVERY = 5
# The warm-up's steps are short: its plain lines are this many seconds apart.
PLAIN_SECONDS = 2.0


class Progress:
    """`with Progress(total) as progress: progress.warm(...); progress.step(method, row)`.

    `total` is the number of RL steps of all methods; the time left is extrapolated from the mean
    step so far. A mute one says nothing.
    """

    def __init__(self, total: int, *, mute: bool = False) -> None:
        self._total, self._done, self._seconds, self._mute = total, 0, 0.0, mute
        self._last_plain = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty() and not self._mute:
            try:
                from rich import progress
            except ImportError:
                return self
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=10),
                progress.TimeRemainingColumn(compact=True),
                refresh_per_second=4,
                # Seconds: a step can be longer than rich's half minute.
                speed_estimate_period=3600,
                transient=True,
            )
            self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._mute:
            print(text, flush=True)

    def warm(self, step: int, steps: int, loss: float) -> None:
        text = f"warm-up   step {step:>3}/{steps}  loss {loss:.3f}"
        self._draw(text, step, steps)
        due = time.monotonic() - self._last_plain >= PLAIN_SECONDS
        if step == steps or (due and self._bar is None):
            self._last_plain = time.monotonic()
            self.say(text)

    def skip(self, steps: int) -> None:
        """Steps that need no work: a resumed run has them."""
        self._total -= steps

    def step(self, method: str, steps: int, row: Row, answers: Sequence[Row] = ()) -> None:
        """A finished step, with a few of its answers as `answer_rows` gives them."""
        self._done += 1
        self._seconds += row["seconds"]
        left = int(self._seconds / self._done * (self._total - self._done))
        number = row["step"] + 1
        text = (
            f"{method:<9} step {number:>3}/{steps}  reward {row['reward']:.3f}  "
            f"entropy {row['entropy']:.3f}  covariance {row['covariance']:+.3f}  "
            f"{row['tokens_per_second']:>5.0f} tokens/s"
        )
        self._draw(text, self._done, self._total)
        if number == steps or (number % PLAIN_EVERY == 0 and self._bar is None):
            self.say(f"{text}  {left // 60}:{left % 60:02d} left")
            for answer in answers:
                self.say(one_line(answer))

    def evaluated(self, method: str, row: Row) -> None:
        most = max(int(key[5:]) for key in row if key.startswith("pass@"))
        self.say(
            f"{method:<9} after {row['step']:>3} steps, evaluation:  reward {row['reward']:.3f}  "
            f"right {row['right']:.3f}  pass@{most} {row[f'pass@{most}']:.3f}  "
            f"greedy {row['greedy_right']:.3f}  entropy {row['entropy']:.3f}"
        )

    def _draw(self, text: str, done: int, total: int) -> None:
        if self._bar is not None:
            (task,) = self._bar.task_ids
            self._bar.update(task, description=text, completed=done, total=total)
