"""Times the ops against plain torch and against the least that must be done.

    ./dev bench [--quick] [--only TEXT] [--repeats 7] [--out runs/bench.json]

Nothing is timed before it is right: on 8 rows our error against the float64 oracle may be twice
that of plain torch in the same dtype plus a small floor, and on all rows both must agree. The three
variants then take turns, so that a slow moment of the machine hits all of them, and medians are
compared. "floor" is what any implementation must do: read (and write) the logits once, or the three
bare matrix products. Random logits; memory is not measured here (the demo does).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from registry import CASES, QUICK, Case, Problem, Results

import logitless as ll

GATE_ROWS = 8
# Beside the error of plain torch: a few float32 roundings of numbers up to 20, relative for
# gradients.
FLOOR = 1e-5
VARIANTS = ("ours", "plain", "floor")


def worst(got: torch.Tensor, want: np.ndarray) -> float:
    return float(np.abs(got.detach().double().numpy() - want).max())


def check(case: Case) -> None:
    """Raises AssertionError where our results are not as good as they must be."""
    problem = case.make(GATE_ROWS)
    ours, plain, expected = problem.ours(), problem.plain(), problem.oracle()
    for name, value in ours.items():
        scale = np.abs(expected[name]).max()
        allowed = 2 * worst(plain[name], expected[name]) + FLOOR * max(
            scale, 1.0 if name in ("logp", "entropy") else 0.0
        )
        error = worst(value, expected[name])
        assert error <= allowed, f"{case.name}: {name} is off by {error:.2e} > {allowed:.2e}"


def check_agreement(case: Case, ours: Results, plain: Results) -> None:
    """All rows against plain torch: catches what 8 rows cannot show, such as a chunk dropped."""
    for name, value in ours.items():
        want = plain[name].detach().double()
        # Two roundings to bfloat16 differ by 2^-8 of the largest value; float32 by far less.
        share = 2.0**-6 if value.dtype == torch.bfloat16 or "bfloat16" in case.name else 1e-4
        error = float((value.detach().double() - want).abs().max())
        allowed = share * float(want.abs().max())
        assert error <= allowed, f"{case.name}: {name} differs by {error:.2e} > {allowed:.2e}"


def seconds_of(problem: Problem, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(repeats):
        for name in np.roll(VARIANTS, turn):
            started = time.perf_counter()
            getattr(problem, name)()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(case: Case, repeats: int) -> dict[str, Any]:
    check(case)
    problem = case.make(case.rows)
    # Also the warm-up.
    check_agreement(case, problem.ours(), problem.plain())
    problem.floor()
    seconds = seconds_of(problem, repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": case.name,
        "milliseconds": {name: 1e3 * value for name, value in median.items()},
        "range_milliseconds": {n: [1e3 * min(v), 1e3 * max(v)] for n, v in seconds.items()},
        "plain_over_ours": median["plain"] / median["ours"],
        "ours_over_floor": median["ours"] / median["floor"],
        "rate": {name: case.work / value / 1e9 for name, value in median.items()},
        "unit": case.unit,
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "logitless": ll.__version__,
        "commit": git.stdout.strip() or None,
        "command": " ".join(["benchmarks/run.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description="time ours against plain torch"
    )
    parser.add_argument("--quick", action="store_true", help="two small cases, a few seconds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has TEXT")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    cases = [c for c in (QUICK if options.quick else CASES) if options.only in c.name]
    if not cases:
        parser.error(f"no case has {options.only!r} in its name")

    about = machine()
    print(" ".join(f"{key}={value}" for key, value in about.items()))
    print(
        f"{'median of interleaved runs':<52} {'ours':>9} {'plain':>9} {'floor':>9}"
        f"  plain/ours  ours/floor  ours at"
    )
    rows = []
    for case in cases:
        row = measure(case, options.repeats)
        rows.append(row)
        ms = row["milliseconds"]
        print(
            f"{row['case']:<52} {ms['ours']:>6.1f} ms {ms['plain']:>6.1f} ms {ms['floor']:>6.1f} ms"
            f"  {row['plain_over_ours']:>10.2f}  {row['ours_over_floor']:>10.2f}"
            f"  {row['rate']['ours']:.0f} {row['unit']}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": about, "cases": rows}, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
