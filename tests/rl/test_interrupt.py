"""Requests to stop: none is lost, wherever the process is when it hears them."""

from __future__ import annotations

import os
import signal

import pytest

from logitless.rl.tracking.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_others_are_asked_is_of_the_next_check(number: int) -> None:
    asked: list[int] = []

    def agree(status: int) -> int:
        asked.append(status)
        if len(asked) == 1:
            os.kill(os.getpid(), number)
        return status

    with StopRequest(agree) as stop:
        assert not stop.check() and not stop.requested
        # a process that ends now ends by the signal
        assert stop.status == 128 + number
        assert stop.check() and stop.requested
    assert asked == [0, 128 + number]


def test_what_another_process_has_heard_is_heard() -> None:
    with StopRequest(lambda status: max(status, 143)) as stop:
        assert stop.check() and stop.requested and stop.status == 143


def test_the_second_signal_is_at_once_and_the_first_is_the_status() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.end_now()
        assert stop.requested and stop.status == 143
    assert signal.getsignal(signal.SIGTERM) is before
