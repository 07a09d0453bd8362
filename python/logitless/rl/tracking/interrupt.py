"""Ctrl-C and SIGTERM, politely: the first one ends the run after the current step, the second one
at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

HEARD = (signal.SIGINT, signal.SIGTERM)


class Stopped(RuntimeError):
    """The end of what cannot go on half done; all processes know of it."""


class StopRequest:
    """`with StopRequest() as stop: ... if stop.check(): break`. Only the main thread hears signals.

    Where several processes end together, `agree` makes of a status what is true of all: the one
    that has heard a signal is not alone to act on it.
    """

    def __init__(self, agree: Callable[[int], int] = lambda status: status) -> None:
        # as all have found when they checked last
        self.requested = False
        # of a process that ends now: 0, or 128 + the signal
        self.status = 0
        self._heard, self._agree = False, agree
        self._previous: dict[int, Any] = {}

    def check(self) -> bool:
        """Whether this is the end."""
        self.status = self._agree(self.status)
        self.requested = self.status != 0
        return self.requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._hear) for number in HEARD}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.status = 128 + number
        if self._heard:
            raise KeyboardInterrupt
        self._heard = True
