"""Time and memory of the head as vocabulary and batch grow: time linear, memory flat.

    python -m benchmarks.studies.growth [--budget 256MiB] [--width 1024] [--threads 2]

Forward and backward of linear_policy_loss with an entropy bonus, bfloat16, each size in a process
of its own, whose peak is what it needs beyond inputs and the gradients it returns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

VOCABS = (32_000, 64_000, 128_256, 151_936, 262_144)
ROWS = (256, 512, 1024, 2048, 4096, 8192, 16384)
# Where the other one grows.
AT_VOCAB, AT_ROWS = 151_936, 1024
# A size that has taken this many seconds, and has run twice, has run enough.
RUNS, ENOUGH_SECONDS = 5, 6.0


@dataclass(frozen=True)
class Point:
    rows: int
    vocab: int
    width: int
    budget: str
    seconds: float
    peak_bytes: int
    planned_bytes: int
    mode: str


def measure(rows: int, vocab: int, width: int, budget: str) -> Point:
    """In this process."""
    import torch

    import logitless as ll
    from benchmarks.harness import peak_memory

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).mul_(0.03).bfloat16().requires_grad_()
    targets = torch.randint(vocab, (rows,), generator=generator)
    old, advantages = torch.full((rows,), -10.0), torch.randn(rows, generator=generator)
    spec = ll.PolicyLossSpec(surrogate=ll.Unclipped(), entropy=ll.EntropyBonus(0.01))
    mask = torch.ones(rows, dtype=torch.bool)

    def run() -> float:
        hidden.grad = weight.grad = None
        started = time.perf_counter()
        ll.linear_policy_loss(
            hidden, weight, targets, old, advantages, mask, spec, memory_budget=budget
        ).loss.backward()
        return time.perf_counter() - started

    run()
    hidden.grad = weight.grad = None
    ll.release_memory()
    peak_memory.reset_peak()
    before = peak_memory.current()
    run()
    outputs = 2 * width * (rows + vocab)
    peak = peak_memory.peak() - before - outputs
    plan = ll.plan(rows, width, vocab, "bfloat16", budget)
    seconds: list[float] = []
    while len(seconds) < RUNS and (len(seconds) < 2 or sum(seconds) < ENOUGH_SECONDS):
        seconds.append(run())
    median = statistics.median(seconds)
    return Point(rows, vocab, width, budget, median, peak, plan.total_bytes, plan.mode)


def in_a_process(*sizes: object) -> Point:
    # large blocks go back to the system at once, or the next run would find them there
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, "-m", "benchmarks.studies.growth", "--one", json.dumps(sizes)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return Point(**json.loads(answer.stdout.splitlines()[-1]))


def plot(by_vocab: list[Point], by_rows: list[Point], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col")
    for column, (points, name) in enumerate(((by_vocab, "vocab"), (by_rows, "rows"))):
        sizes = [getattr(point, name) for point in points]
        top, bottom = axes[0][column], axes[1][column]
        top.plot(sizes, [point.seconds for point in points], "o-")
        bottom.plot(sizes, [point.peak_bytes / 2**20 for point in points], "o-", label="measured")
        bottom.plot(sizes, [p.planned_bytes / 2**20 for p in points], "--", label="planned")
        logits = [2 * p.rows * p.vocab / 2**20 for p in points]
        bottom.plot(sizes, logits, ":", label="full logits alone")
        top.set_ylabel("seconds")
        bottom.set_ylabel("MiB beyond inputs and gradients")
        bottom.set_xlabel({"vocab": "vocabulary", "rows": "tokens"}[name])
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.grid(alpha=0.3)
    axes[1][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="256MiB")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/growth"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(asdict(measure(*json.loads(chosen.one)))))
        return
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    last = (chosen.width, chosen.budget)
    by_vocab = [in_a_process(AT_ROWS, vocab, *last) for vocab in VOCABS]
    by_rows = [in_a_process(rows, AT_VOCAB, *last) for rows in ROWS]
    for point in (*by_vocab, *by_rows):
        peak, planned = (size / 2**20 for size in (point.peak_bytes, point.planned_bytes))
        print(
            f"{point.rows:>6} x {point.vocab:>6}  {point.seconds:8.3f} s  {peak:8.1f} MiB,"
            f" planned {planned:.1f}  {point.mode}"
        )
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"by_vocab": [asdict(p) for p in by_vocab], "by_rows": [asdict(p) for p in by_rows]}
    chosen.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    plot(by_vocab, by_rows, chosen.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
