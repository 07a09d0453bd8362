"""Clocks, cold caches, and runs that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.case import Call, Results

# A call that has taken this many seconds in all, and has run this often, has run enough.
ENOUGH_SECONDS, ENOUGH_RUNS = 2.0, 3
# Where the machine does not say.
LAST_LEVEL_CACHE = 32 << 20


class Timer:
    """Seconds of a call, on the clock of the device: perf_counter, or events on CUDA's stream.

    Caches are cold: before each run a buffer of twice the last-level cache is read.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = torch.device(device).type == "cuda"
        self.flush = torch.zeros(2 * last_level_cache(device) // 4, device=device)

    def __call__(self, call: Call) -> tuple[float, Results]:
        prepared = call.prepare()
        self.flush.sum()
        if not self.cuda:
            started = time.perf_counter()
            results = call.run(prepared)
            return time.perf_counter() - started, results
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        results = call.run(prepared)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, results


def last_level_cache(device: str) -> int:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=LAST_LEVEL_CACHE)


@dataclass(frozen=True)
class Times:
    """Seconds of the runs of one call."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def low(self) -> float:
        return min(self.runs)

    @property
    def high(self) -> float:
        return max(self.runs)


def interleave(calls: Mapping[str, Call], repeats: int, timer: Timer) -> dict[str, Times]:
    """Every call `repeats` times, in rounds whose order rotates, every other one backwards: a slow
    moment of the machine hits all of them, and nobody always runs after the same neighbour. The
    slow ones run less often."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(repeats):
        shift = turn % len(names)
        order = names[shift:] + names[:shift]
        for name in reversed(order) if turn % 2 else order:
            runs = seconds[name]
            if len(runs) < ENOUGH_RUNS or sum(runs) < ENOUGH_SECONDS:
                runs.append(timer(calls[name])[0])
    return {name: Times(tuple(runs)) for name, runs in seconds.items()}
