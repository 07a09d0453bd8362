"""Clocks, cold caches, and runs that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.harness.case import Call

# A call that has taken this many seconds in all, and has run this often, has run enough.
ENOUGH_SECONDS, ENOUGH_RUNS = 12.0, 3
# Where the machine does not say.
LAST_LEVEL_CACHE = 32 << 20
# Reads of the flush buffer before a run on CUDA: 2 ms on an H200, so that the launches of the run,
# a fraction of that, are queued before the device gets to them and are not timed with it.
HEAD_START = 64
# Calls of a burst.
BURST = 20


class Run(NamedTuple):
    seconds: float  # on the clock of the device
    host: float  # until the call returned, which on CUDA is before its work is done
    cpu: float | None = None  # of the calling thread; a busy machine adds little to it


Clock = Callable[[Call], Run]


class Timer:
    """Seconds of a call, on the clock of the device: perf_counter, or events on CUDA's stream.

    Caches are cold: before each run a buffer of twice the last-level cache is read.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = torch.device(device).type == "cuda"
        self.flush = torch.zeros(2 * last_level_cache(device) // 4, device=device)

    def __call__(self, call: Call) -> Run:
        prepared = call.prepare()
        if not self.cuda:
            self.flush.sum()
            started = time.perf_counter()
            call.run(prepared)
            seconds = time.perf_counter() - started
            return Run(seconds, seconds)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(HEAD_START):
            self.flush.sum()
        begin.record()
        started = time.perf_counter()
        results = call.run(prepared)
        host = time.perf_counter() - started
        end.record()
        end.synchronize()
        # Until here: memory given back earlier would be handed to someone else while in use.
        del results
        return Run(begin.elapsed_time(end) / 1e3, host)


class BurstTimer:
    """The host's time of calls that are small and warm: medians of a burst, by wall and by CPU
    clock. Other programs take turns with a call of microseconds seldom, but share its caches."""

    def __init__(self, calls: int = BURST) -> None:
        self.calls = calls

    def __call__(self, call: Call) -> Run:
        walls, cpus = [], []
        # One more: the first finds the caches as somebody else has left them.
        for _ in range(self.calls + 1):
            prepared = call.prepare()
            cpu, wall = time.thread_time(), time.perf_counter()
            results = call.run(prepared)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.thread_time() - cpu)
            del results
        seconds = statistics.median(walls[1:])
        return Run(seconds, seconds, statistics.median(cpus[1:]))


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
    host: tuple[float, ...] = ()  # until each returned, where that is another time
    rounds: tuple[int, ...] = ()  # in which each run took its turn, ascending
    cpu: tuple[float, ...] = ()  # of the calling thread, where it was asked for

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def low(self) -> float:
        return min(self.runs)

    @property
    def high(self) -> float:
        return max(self.runs)

    def over(self, other: Times) -> float:
        """The median over common rounds of the quotient of their runs, which took turns there: a
        machine that is three times slower for half a minute moves medians, but hardly this."""
        mine, theirs = (dict(zip(x.rounds, x.runs, strict=False)) for x in (self, other))
        common = mine.keys() & theirs.keys()
        if len(common) < ENOUGH_RUNS:
            return self.median / other.median
        return statistics.median(mine[number] / theirs[number] for number in common)


def interleave(
    calls: Mapping[str, Call], repeats: int, timer: Clock, enough: float = ENOUGH_SECONDS
) -> dict[str, Times]:
    """Every call `repeats` times, in rounds whose order rotates, every other one backwards: a slow
    moment of the machine hits all of them, and nobody always runs after the same neighbour. The
    slow ones, those that have taken `enough` seconds, run less often."""
    found: dict[str, list[tuple[Run, int]]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(repeats):
        shift = turn % len(names)
        order = names[shift:] + names[:shift]
        for name in reversed(order) if turn % 2 else order:
            runs = found[name]
            if len(runs) < ENOUGH_RUNS or sum(run.seconds for run, _ in runs) < enough:
                runs.append((timer(calls[name]), turn))
    return {name: times(runs) for name, runs in found.items()}


def times(runs: Sequence[tuple[Run, int]]) -> Times:
    return Times(
        tuple(run.seconds for run, _ in runs),
        tuple(run.host for run, _ in runs),
        tuple(turn for _, turn in runs),
        tuple(run.cpu for run, _ in runs if run.cpu is not None),
    )
