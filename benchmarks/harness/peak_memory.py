"""How much memory a run takes beyond its inputs: the growth of the peak over one run.

Each in a process of its own, for what one leaves in the allocator would flatter the next. It runs
once before, so that compilers and thread pools have started.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness.case import FLOOR, Call, Case
from benchmarks.harness.comparison import Comparison, run_and_peak

# Two at once: nothing is timed here.
WORKERS = 2
STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Starts the peak anew where the system can (Linux); elsewhere the peak stays the process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak() -> int:
    if STATUS.is_file():
        return status("VmHWM")
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def current() -> int:
    """Resident now; where the system does not say, the peak, so that growth is never overstated."""
    return status("VmRSS") if STATUS.is_file() else peak()


def status(key: str) -> int:
    for line in STATUS.read_text("ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {key}")


def growth(call: Call, device: str, release: Callable[[], object]) -> int:
    """Bytes, in this process. `release`: gives back what our allocator still holds, which would
    hide what the run takes."""
    call()
    gc.collect()
    if torch.device(device).type == "cuda":
        return run_and_peak(call, device)[1] or 0
    prepared = call.prepare()
    gc.collect()
    release()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    before = current()
    call.run(prepared)
    return peak() - before


def with_peaks(comparison: Comparison, peak_of: Callable[[str, Case, str], int]) -> Comparison:
    """The same comparison with the peak of everyone but the floors; `peak_of`: op, case and name to
    bytes, from a process of its own."""
    names = [m.name for m in comparison.measured if m.kind != FLOOR]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(
            pool.map(lambda name: peak_of(comparison.op.name, comparison.case, name), names)
        )
    peaks = dict(zip(names, found, strict=True))
    measured = (replace(m, peak_bytes=peaks.get(m.name)) for m in comparison.measured)
    return replace(comparison, measured=tuple(measured))
