"""What a run says while it works: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from logitless.rl.metrics import Row

# Without a terminal: a line every so many steps, and one for the last.
PLAIN_EVERY = 5


class Progress:
    """`with Progress(total) as progress: progress.warm(...); progress.step(method, row)`.

    `total` is the number of RL steps of all methods; the time left counts on the pace so far.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done, self._seconds = total, 0, 0.0
        self._last_plain = 0.0
        self._live: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            try:
                from rich.live import Live
            except ImportError:
                return self
            self._live = Live(refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def warm(self, step: int, steps: int, loss: float) -> None:
        text = f"warm-up   step {step:>3}/{steps}  loss {loss:.3f}"
        self._show(text, keep=step == steps, every=2.0)

    def skip(self, steps: int) -> None:
        """Steps that need no work: a resumed run has them."""
        self._total -= steps

    def step(self, method: str, steps: int, row: Row) -> None:
        self._done += 1
        self._seconds += row["seconds"]
        left = self._seconds / self._done * (self._total - self._done)
        number = row["step"] + 1
        text = (
            f"{method:<9} step {number:>3}/{steps}  reward {row['reward']:.3f}  entropy "
            f"{row['entropy']:.3f}  "
            f"covariance {row['covariance']:+.3f}  {row['tokens_per_second']:>5.0f} tokens/s  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
        self._show(text, keep=number == steps, every=0.0 if number % PLAIN_EVERY == 0 else None)

    def _show(self, text: str, *, keep: bool, every: float | None) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(text, no_wrap=True))
            if keep:
                self.say(text)
        elif keep or (every is not None and time.monotonic() - self._last_plain >= every):
            self._last_plain = time.monotonic()
            print(text, flush=True)
