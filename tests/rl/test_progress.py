from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from logitless.rl.tracking.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(step: int) -> dict[str, Any]:
    return {
        "step": step, "reward": 0.5, "entropy": 1.25, "covariance": 0.125,
        "tokens_per_second": 1000.0, "seconds": 30.0,
    }  # fmt: skip


def run() -> None:
    """Two warm-up steps, then two methods of seven steps; the first was resumed at step 1."""
    with Progress(14) as progress:
        progress.warm(1, 2, 3.0)
        progress.warm(2, 2, 2.0)
        progress.skip(1)
        for step in range(1, 7):
            progress.step("grpo", 7, row(step))
        progress.say("a line [of] its own")
        progress.step("clip_cov", 7, row(0))


STEP = "reward 0.500  entropy 1.250  covariance +0.125   1000 tokens/s"


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert capsys.readouterr().out.splitlines() == [
        "warm-up   step   1/2  loss 3.000",
        "warm-up   step   2/2  loss 2.000",
        f"grpo      step   5/7  {STEP}  4:30 left",
        f"grpo      step   7/7  {STEP}  3:30 left",
        "a line [of] its own",
    ]


def test_on_a_terminal_the_last_line_of_a_method_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    run()
    text = terminal.getvalue()
    # The live line is erased before a line is printed: each kept line follows an erasure.
    kept = [line.split("\x1b[2K")[-1].strip() for line in text.splitlines()]
    for line in (
        "warm-up   step   2/2  loss 2.000",
        f"grpo      step   7/7  {STEP}  3:30 left",
        "a line [of] its own",
    ):
        assert line in kept
    assert not any("step   5/7" in line for line in kept)
    assert "clip_cov  step   1/7" in text
