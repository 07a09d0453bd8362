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
        # 0, or 128 + the signal: what this process has heard, and what all knew at their last check
        self._heard = self._agreed = 0
        self._agree = agree
        self._previous: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """Of a process that ends now: 0, or 128 + the signal."""
        return self._agreed or self._heard

    @property
    def requested(self) -> bool:
        """Whether this is the end, as all have found when they checked last."""
        return self._agreed != 0

    def check(self) -> bool:
        """Whether this is the end."""
        # what is heard while the others are asked stays heard, for the next check
        self._agreed = self._agree(self.status)
        return self.requested

    def end_now(self) -> None:
        """What a second signal asks for; no other process is asked."""
        self._agreed = self.status or 128 + signal.SIGINT

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
        again, self._heard = self._heard, 128 + number
        if again:
            raise KeyboardInterrupt
