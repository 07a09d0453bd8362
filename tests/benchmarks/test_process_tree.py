"""What first contact starts beside its steps ends with them."""

from __future__ import annotations

import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.process_tree import descendants, kill_tree


def tree() -> tuple[subprocess.Popen[str], list[int]]:
    """A process that has started another, which has started a third."""
    command = ["bash", "-c", "bash -c 'sleep 600 & wait' & wait"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL)
    for _ in range(500):
        if len(found := descendants(process.pid)) == 2:
            return process, found
        time.sleep(0.02)
    kill_tree(process)
    raise AssertionError("two more processes were to start")


def runs(pid: int) -> bool:
    """Not that of one that has ended, whom nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def none_left(pids: list[int]) -> bool:
    for _ in range(500):
        if not any(map(runs, pids)):
            return True
        time.sleep(0.02)
    return False


def test_a_process_ends_with_all_that_it_started() -> None:
    process, below = tree()
    assert all(map(runs, below))
    kill_tree(process)
    assert process.poll() is not None and none_left(below)
    kill_tree(process)


def test_memcheck_ends_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there was no time to ask what it found: what follows is timed."""
    correctness = import_module("benchmarks.gpu.contact_steps.correctness")
    started: list[int] = []

    def begin(self: Any) -> dict[str, Any]:
        self.process, below = tree()
        started.extend([self.process.pid, *below])
        return {}

    monkeypatch.setattr(correctness.Sanitized, "begin", begin)
    monkeypatch.setattr(correctness, "checks", lambda place: iter(()))
    place: Any = None
    for key, run in correctness.correctness(place):
        if key == "memcheck begins":
            run()
    assert len(started) == 3 and none_left(started)
