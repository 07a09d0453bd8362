"""Clocks, memory and launches of a call, the sizes of the steps, and who is here."""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_worker import Fields, Place
from benchmarks.gpu.predict import model as predict
from benchmarks.gpu.predict.table import OPS
from benchmarks.harness.case import Call
from benchmarks.harness.timing import Run as Timed
from benchmarks.harness.timing import Timer

RUNS, ENOUGH = 20, 0.25
BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16
SHORT = {BF16: "bfloat16", F32: "float32", F16: "float16"}
VOCAB = 151_936
# (rows, width, vocab) of the heads, the most telling first.
HEADS = (
    (8192, 4096, VOCAB), (8192, 1024, VOCAB), (8192, 2048, VOCAB), (8192, 4096, 131_072),
    (32_768, 4096, 131_072),
)  # fmt: skip
TINY_HEADS = ((24, 16, 5000), (40, 8, 4100))
ROWS, TINY_ROWS = (8192, VOCAB), (12, 4500)


@functools.lru_cache(maxsize=1)
def timer(device: str) -> Timer:
    return Timer(device)


def clock(
    place: Place, run: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None
) -> Fields:
    """Median milliseconds of the device, and until the call returned."""
    call = Call(run, prepare)
    call()
    runs: list[Timed] = []
    while len(runs) < (1 if place.tiny else RUNS):
        runs.append(timer(place.device)(call))
        spent = sum(each.seconds for each in runs)
        if len(runs) >= 3 and (spent > ENOUGH or place.left < 2):
            break
    ms = 1e3 * statistics.median(each.seconds for each in runs)
    host = 1e3 * statistics.median(each.host for each in runs)
    return {"ms": ms, "host_ms": host, "runs": len(runs)}


def bare(place: Place, run: Callable[[], Any]) -> Fields:
    return clock(place, lambda _: run())


def peak(place: Place, run: Callable[[], Any]) -> tuple[Any, int | None]:
    """What it gives, and how far it drove the allocated memory up."""
    if not place.cuda:
        return run(), None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = run()
    torch.cuda.synchronize()
    return found, torch.cuda.max_memory_allocated() - before


def traffic(place: Place, run: Callable[[], Any]) -> Fields:
    """Launches, waits and copies of one call, as the profiler counts them, and its kernels."""
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if place.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if place.cuda:
            torch.cuda.synchronize()
    counts = {"launches": 0, "waits": 0, "copies": 0}
    kernels = []
    for event in profile.key_averages():
        name = event.key
        counts["launches"] += event.count if "LaunchKernel" in name else 0
        counts["waits"] += event.count if name.startswith("cuda") and "Synchronize" in name else 0
        counts["copies"] += event.count if name.startswith("cudaMemcpy") else 0
        if place.cuda and event.device_type.name == "CUDA":
            kernels.append((float(event.self_device_time_total), int(event.count), name[:60]))
    # The last wait is ours.
    counts["waits"] -= place.cuda
    kernels.sort(reverse=True)
    return {**counts, "kernels": [{"us": t, "calls": n, "name": k} for t, n, k in kernels[:10]]}


def empty_caches(place: Place) -> None:
    gc.collect()
    if place.cuda:
        torch.cuda.empty_cache()


def machine(place: Place) -> predict.Machine | None:
    if not place.cuda:
        return None
    name = torch.cuda.get_device_name()
    return next((m for key, m in predict.MACHINES.items() if key in name), None)


def predicted(place: Place, op: str, n: int, h: int, v: int, dtype: torch.dtype = BF16) -> Fields:
    m = machine(place)
    if m is None or place.tiny:
        return {}
    formula, floor, _ = OPS[op]
    shape = predict.Shape(n, h, v, SHORT[dtype])
    return {"predicted_ms": 1e3 * formula(m, shape), "floor_ms": 1e3 * floor(m, shape)}


def backends_here(place: Place) -> list[str]:
    from logitless.backends import registry as backends

    device = "cuda:0" if place.cuda else "cpu"
    names = ("cuda", "triton", "torch") if place.cuda else ("cpu", "cuda", "triton", "torch")
    return [name for name in names if not backends.why_not(name, device)]


def flops_of(found: Fields, flops: float) -> Fields:
    return {**found, "tflops": flops / found["ms"] / 1e9}


def close(found: Tensor, truth: Tensor, share: float) -> float:
    """The error as a share of the largest; raises where it is too large."""
    error = float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
    if not error <= share:
        raise AssertionError(f"off by {error:.2e} of the largest, allowed {share:.0e}")
    return error
