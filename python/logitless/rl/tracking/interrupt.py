"""Ctrl-C and SIGTERM, politely: the first one ends the run after the current step, the second one
at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

HEARD = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`with StopRequest() as stop: ... if stop.requested: break`. Only the main thread hears
    signals.
    """

    def __init__(self) -> None:
        self.requested = False
        # of a process that ends now: 0, or 128 + the signal
        self.status = 0
        self._previous: dict[int, Any] = {}

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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
