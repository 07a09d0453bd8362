"""Error, bound and cost of tail_mass: docs/support.md's table and plot.

python -m benchmarks.studies.sparse_error [--rows N] [--json FILE] [--plot FILE]

On the rows of `peaked_head`. Error: of both gradients against exact float32 logits and gradients of
the same bfloat16 hidden and weight, relative in the Frobenius norm. Beside it, what tail_mass = 0
has with logits in bfloat16: their rounding, which everyone pays who keeps them so.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from benchmarks.cases.calls import products
from benchmarks.cases.inputs import HeadInputs
from benchmarks.cases.peaked_head import peaked_head
from benchmarks.harness.case import Call, Case, Results
from benchmarks.harness.timing import Timer, interleave

TAILS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FLOAT32 = {"logits_dtype": torch.float32}


def step(x: HeadInputs, wide: bool, **options: Any) -> tuple[ll.TokenStats, tuple[Tensor, ...]]:
    """logp and entropy, and the gradient of their sum weighted by `upstream`."""
    dtype = torch.float32 if wide else x.hidden.dtype
    h, w = (t.to(dtype).detach().requires_grad_() for t in (x.hidden, x.weight))
    stats = ll.linear_token_stats(h, w, x.targets, **options)
    up = x.upstream
    return stats, torch.autograd.grad((stats.logp, stats.entropy), (h, w), (up, up))


def off(a: Tensor, b: Tensor) -> float:
    parts = zip(a.split(4096), b.split(4096), strict=True)
    error = sum(float((p.float() - q.float()).square().sum()) for p, q in parts)
    return float((error / float(b.float().square().sum())) ** 0.5)


def row(x: HeadInputs, tail: float, truth: Any) -> dict[str, float]:
    extras = ("dropped_mass", "dropped_entropy")
    stats, wide = step(x, True, tail_mass=tail, extras=extras)
    mass, entropy = (stats.extras[name].detach() for name in extras)
    served = (mass <= tail) & entropy.isfinite() & (tail > 0)
    bound = torch.where(served, x.upstream.abs() * (mass + entropy), 0.0)
    _, narrow = step(x, False, tail_mass=tail, logits_dtype=x.hidden.dtype)
    return {
        "tail_mass": tail,
        "served": float(served.float().mean()),
        "d_hidden": off(wide[0], truth[0]),
        "d_weight": off(wide[1], truth[1]),
        "d_hidden, bfloat16": off(narrow[0], truth[0]),
        "d_weight, bfloat16": off(narrow[1], truth[1]),
        "bound, mean": float(bound.mean()),
        "bound, largest": float(bound.max()),
    }


def quotients(x: HeadInputs, repeats: int) -> list[float]:
    """Time of a step over that of the bare products, by tail_mass."""
    n = len(x.hidden)
    steps = {str(tail): Call(functools.partial(timed, x, tail)) for tail in TAILS}
    calls = {"bare": products(x, (n, n)), **steps}
    for call in calls.values():
        call()
    times = interleave(calls, repeats, Timer("cpu"), enough=math.inf)
    return [times[name].over(times["bare"]) for name in steps]


def timed(x: HeadInputs, tail: float, _: None) -> Results:
    _stats, (d_hidden, d_weight) = step(x, False, tail_mass=tail)
    return {"dhidden": d_hidden, "dweight": d_weight}


def table(rows: list[dict[str, float]]) -> str:
    head = (
        "| tail_mass | rows served | error of d_hidden, d_weight | the same, bfloat16 logits | "
        "bound, mean (largest) | time / bare products |"
    )
    lines = [head, "|" + "---|" * 6]
    lines += [
        f"| {r['tail_mass']:g} | {r['served']:.1%} | {r['d_hidden']:.1e}, {r['d_weight']:.1e} | "
        f"{r['d_hidden, bfloat16']:.1e}, {r['d_weight, bfloat16']:.1e} | "
        f"{r['bound, mean']:.1e} ({r['bound, largest']:.1e}) | {r['time']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shown = [r for r in rows if r["tail_mass"]]
    x = [r["tail_mass"] for r in shown]
    for name, style in (("d_hidden", "o-"), ("d_weight", "s-"), ("bound, mean", "^--")):
        left.loglog(x, [r[name] for r in shown], style, label=name)
    for name in ("d_hidden", "d_weight"):
        left.axhline(rows[0][f"{name}, bfloat16"], color="gray", lw=1, ls=":")
    left.text(x[0], rows[0]["d_hidden, bfloat16"] * 1.1, "bfloat16 logits, nothing dropped", size=8)
    left.set_xlabel("tail_mass"), left.set_ylabel("relative error; bound"), left.legend()
    right.semilogx(x, [r["time"] for r in shown], "o-")
    right.axhline(rows[0]["time"], color="gray", lw=1, ls=":")
    right.text(x[0], rows[0]["time"] * 0.95, "tail_mass = 0", size=8)
    right.set_ylim(0)
    right.set_xlabel("tail_mass"), right.set_ylabel("time / three bare products")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    case = Case(rows=options.rows, width=options.width, vocab=options.vocab, dtype="bfloat16")
    x = peaked_head(case)
    truth = step(x, True)[1]
    rows = [row(x, tail, truth) for tail in TAILS]
    # What the errors were measured with is still the pool's, in other sizes.
    ll.release_memory()
    for found, quotient in zip(rows, quotients(x, options.repeats), strict=True):
        found["time"] = quotient
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
