"""The stage `profile`: which kernels the headline calls are made of, and what limits each.

Times by kernel come from torch's profiler; how much of the memory's bandwidth each drew comes from
ncu, where it is allowed. Clocks are left as they are.
"""

from __future__ import annotations

import csv
import functools
import io
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cases.registry import BY_NAME
from benchmarks.gpu.stage_process import Leave, Work
from benchmarks.gpu.stages import measurements
from benchmarks.gpu.stages.measure import BACKENDS, ours
from benchmarks.harness.comparison import make_calls

OPS = ("forward", "backward in place")
RUNS = 5
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "launch__registers_per_thread",
)  # fmt: skip
# Ours by name; torch's fill and copy kernels are not.
OUR_KERNELS = (
    "regex:partials|combine|finalize|pieces|fold|finish|coefficients|backward|moments|mix|terms|"
    "values|gradient"
)
# Those of a row, and beside a teacher.
LAUNCHES = 24


def by_kernel(op: str, backend: str) -> dict[str, Any]:
    """Microseconds of each kernel of one run, prepared runs included."""
    case = replace(measurements.HEADLINE["rows"], device="cuda")
    inputs = BY_NAME[op].inputs(case)
    mine = ours(backend)
    _, call = make_calls(BY_NAME[op], [mine], inputs, variants=False)[mine.name]
    if isinstance(call, str):
        raise Leave(call)
    call()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(RUNS):
            call()
        torch.cuda.synchronize()
    found = [
        {"kernel": e.key, "calls": e.count / RUNS, "us": e.self_device_time_total / RUNS}
        for e in profile.key_averages()
        if e.device_type.name == "CUDA"
    ]
    found.sort(key=lambda line: -float(line["us"]))
    return {"kernels": found[:12]}


def by_metric(backend: str) -> dict[str, Any]:
    if shutil.which("ncu") is None:
        raise Leave("no ncu")
    case = measurements.HEADLINE["rows"]
    size = f"{case.rows}x{case.vocab}"
    program = [sys.executable, "-m", "benchmarks.gpu.stages.single_backend", backend, size]
    command = [
        "ncu", "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS),
        "--kernel-name", OUR_KERNELS, "--launch-count", str(LAUNCHES), *program,
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    kernels = parse(answer.stdout)
    if not kernels:
        raise Leave(f"ncu measured nothing: {(answer.stdout + answer.stderr)[-1000:]}")
    return {"kernels": kernels}


def parse(text: str) -> list[dict[str, Any]]:
    """A line per launch from ncu's table, which has a line per metric, after other things said."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        launch = found[row["ID"]]
        launch["kernel"] = row["Kernel Name"]
        launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def run(work: Work) -> None:
    timed = [
        (f"{op}, {backend}", functools.partial(by_kernel, op, backend))
        for op in OPS
        for backend in BACKENDS
    ]
    counted = [(f"ncu, {name}", functools.partial(by_metric, name)) for name in BACKENDS]
    work.each([*timed, *counted])
