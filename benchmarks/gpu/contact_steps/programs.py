"""T8, T9: the tests, and what limits the kernels, by programs of their own."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading

from benchmarks.gpu.build_paths import ROOT
from benchmarks.gpu.contact_steps.checks import head_inputs
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    HEADS,
    ROWS,
    TINY_HEADS,
    TINY_ROWS,
    backends_here,
    traffic,
)
from benchmarks.gpu.contact_steps.tiling import forced, stats_gradients
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place
from benchmarks.gpu.process_tree import kill_tree


def tests(place: Place) -> Cases:
    yield "pytest -m gpu", lambda: run_tests(place)


def run_tests(place: Place) -> Fields:
    from importlib.util import find_spec

    if find_spec("pytest") is None:
        raise Leave("no pytest")
    from benchmarks.gpu.stages.gpu_tests import FILES, LENIENT, NAMES

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rf",
               "--no-header", *LENIENT]  # fmt: skip
    if place.cuda:
        command += ["-m", "gpu", *map(str, FILES)]
        # The processes compile Triton's kernels side by side.
        command += ["-n", "8"] if find_spec("xdist") is not None else []
    else:
        command += [str(FILES[NAMES.index("wiring")]), "-k", "bad_row"]
    answer = watched(command, max(place.left - 1, 5))
    lines = answer.strip().splitlines()
    counts = next((line for line in reversed(lines) if " in " in line), "no end of the tests")
    failures = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    bad = bool(failures) or "passed" not in counts
    (place.folder / "tests.txt").write_text(answer[-200_000:])
    reason = "\n".join([counts, *failures[:20]])
    return {"status": "failed" if bad else "done", "reason": reason if bad else "", "said": counts}


def watched(command: list[str], seconds: float) -> str:
    """What a program says until it ends or its time is over."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    stop = threading.Timer(seconds, process.terminate)
    kill = threading.Timer(seconds + 3, kill_tree, [process])
    stop.start()
    kill.start()
    try:
        assert process.stdout is not None
        return process.stdout.read()
    finally:
        stop.cancel()
        kill.cancel()
        kill_tree(process)


def limits(place: Place) -> Cases:
    for backend in backends_here(place):
        if backend in ("cuda", "triton"):
            yield f"ncu {backend}", functools.partial(counters, place, backend)
    yield "kernels of a head", lambda: kernels_of_a_head(place)


def counters(place: Place, backend: str) -> Fields:
    place.need_gpu()
    from benchmarks.gpu.stages.profiling import LAUNCHES, METRICS, OUR_KERNELS, parse

    if shutil.which("ncu") is None:
        raise Leave("no ncu")
    n, v = TINY_ROWS if place.tiny else ROWS
    command = [
        "ncu", "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS), "--kernel-name",
        OUR_KERNELS, "--launch-count", str(LAUNCHES), sys.executable, "-m",
        "benchmarks.gpu.stages.single_backend", backend, f"{n}x{v}",
    ]  # fmt: skip
    text = watched(command, max(place.left - 1, 5))
    kernels = parse(text)
    if not kernels:
        raise Leave(f"measured nothing: {text[-300:]}")
    return {"kernels": kernels}


def kernels_of_a_head(place: Place) -> Fields:
    import logitless as ll

    n, h, v = TINY_HEADS[0] if place.tiny else HEADS[0]
    x = head_inputs(n, h, v, BF16, place.device)
    backend = next(b for b in backends_here(place) if b != "torch")
    with forced(n, v, v):
        return traffic(place, lambda: stats_gradients(ll, x, "64GiB", backend))
