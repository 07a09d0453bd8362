"""Resident memory of this process, in bytes."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Starts the peak anew where the system can (Linux); elsewhere the peak stays the process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak() -> int:
    if _STATUS.is_file():
        return _status("VmHWM")
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def current() -> int:
    """Resident now; where the system does not say, the peak, so that growth is never overstated."""
    return _status("VmRSS") if _STATUS.is_file() else peak()


def _status(key: str) -> int:
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {key}")
