"""How much memory a contender needs beyond its inputs: the growth of the peak over one run.

Each in a process of its own, for what one leaves in the allocator would flatter the next. It runs
once before, so that compilers and thread pools have started.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import torch

import logitless as ll
from benchmarks.case import Contender, Setting
from benchmarks.match import FLOOR, Match, entrants, make_calls, run_and_peak
from benchmarks.registry import BY_NAME
from logitless.rl import memory

# Two at once: nothing is timed here.
WORKERS = 2


def with_peaks(match: Match) -> Match:
    """The same match with the peak of everyone but the floors."""
    players = [m for m in match.measured if m.kind != FLOOR]
    with ThreadPoolExecutor(WORKERS) as pool:
        peaks = list(pool.map(lambda m: peak_of(match.op.name, match.setting, m.name), players))
    by_name = dict(zip((m.name for m in players), peaks, strict=True))
    measured = (replace(m, peak_bytes=by_name.get(m.name)) for m in match.measured)
    return replace(match, measured=tuple(measured))


def peak_of(op: str, setting: Setting, name: str) -> int:
    request = json.dumps([op, asdict(setting), name])
    command = [sys.executable, "-m", "benchmarks.peak", request]
    answer = subprocess.run(command, capture_output=True, check=False, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{answer.stderr}")
    return int(answer.stdout.splitlines()[-1])


def measure_here(op_name: str, setting: Setting, name: str) -> int:
    op = BY_NAME[op_name]
    chosen: Sequence[Contender] = [c for c in entrants(with_peers=True) if c.name == name]
    inputs = op.inputs(setting)
    _, call = make_calls(op, chosen, inputs)[name]
    call()
    gc.collect()
    if torch.device(setting.device).type == "cuda":
        return run_and_peak(call, setting.device)[1] or 0
    prepared = call.prepare()
    gc.collect()
    # Freed memory that the allocator still holds would hide what the run takes.
    ll.release_memory()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    memory.reset_peak()
    before = memory.current()
    call.run(prepared)
    return memory.peak() - before


if __name__ == "__main__":
    op_name, fields, name = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    sys.stdout.write(f"{measure_here(op_name, Setting(**fields), name)}\n")
