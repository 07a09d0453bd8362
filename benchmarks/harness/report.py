"""What a run leaves: a table for the terminal."""

from __future__ import annotations

import statistics

from benchmarks.harness.case import FLOOR, OURS
from benchmarks.harness.comparison import Comparison, Measured

MARKS = {FLOOR: "= ", OURS: "* "}
COLUMNS = f"{'':30} {'median':>10} {'range':>19} {'x floor':>8} {'x ours':>8} {'error':>9}"


def title(comparison: Comparison) -> str:
    return f"{comparison.op.name}  {comparison.op.shape(comparison.case)}"


def table(comparison: Comparison) -> str:
    moved, flops = comparison.op.bytes(comparison.case), comparison.op.flops(comparison.case)
    terms = ", ".join(f"{name} {mib(size)}" for name, size in moved.items() if size >= 1 << 20)
    lines = [
        title(comparison),
        f"  must move {mib(sum(moved.values()))} ({terms or 'less than 1 MiB each'}),"
        f" compute {flops / 1e9:.3g} GFLOP",
        f"{COLUMNS} {'peak':>12}  {rate_name(comparison)}",
        *(line(comparison, m) for m in sorted(comparison.measured, key=lambda m: m.times.median)),
        *(f"  {name}: {reason}" for name, reason in comparison.skipped.items()),
    ]
    return "\n".join(lines)


def line(comparison: Comparison, m: Measured) -> str:
    over_ours = m.times.over(comparison.ours.times) if comparison.ours else float("nan")
    unit, scale = ("us", 1e6) if comparison.op.tiny else ("ms", 1e3)
    span = f"{scale * m.times.low:.2f}-{scale * m.times.high:.2f}"
    error = f"{max(m.errors.values()):.1e}" if m.errors else ""
    peak = "" if m.peak_bytes is None else mib(m.peak_bytes)
    return (
        f"  {MARKS.get(m.kind, '  ')}{m.name:26}"
        f" {scale * m.times.median:>7.2f} {unit} {span:>19}"
        f" {m.times.over(comparison.floor.times):>8.2f} {over_ours:>8.2f}"
        f" {error:>9} {peak:>12}  {rate(comparison, m):.1f}"
    )


def rate_name(comparison: Comparison) -> str:
    if comparison.op.tiny:
        return "us of CPU"
    return "GFLOP/s" if comparison.op.bound_by == "flops" else "GB/s"


def rate(comparison: Comparison, m: Measured) -> float:
    """Of what the op must do, in the unit that limits it; where that is the host, its CPU time."""
    if comparison.op.tiny:
        return 1e6 * statistics.median(m.times.cpu) if m.times.cpu else float("nan")
    if comparison.op.bound_by == "flops":
        return comparison.op.flops(comparison.case) / m.times.median / 1e9
    return sum(comparison.op.bytes(comparison.case).values()) / m.times.median / 1e9


def mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
