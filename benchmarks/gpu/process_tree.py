"""A process and all that it has started, ended together.

They are found by their parents and not by a process group of their own: whoever ends the group of
the process above is to end them too.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Those that live, each before its own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # it may end meanwhile
        with suppress(OSError):
            # the name before the last bracket may hold anything
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to it and to all that it has started; nothing where it has ended."""
    if process.poll() is None:
        for pid in (*descendants(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
