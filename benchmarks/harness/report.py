"""What a run leaves: a table for the terminal."""

from __future__ import annotations

import statistics

from benchmarks.harness.case import FLOOR, OURS
from benchmarks.harness.comparison import Match, Measured

MARKS = {FLOOR: "= ", OURS: "* "}
COLUMNS = f"{'':30} {'median':>10} {'range':>19} {'x floor':>8} {'x ours':>8} {'error':>9}"


def title(match: Match) -> str:
    return f"{match.op.name}  {match.op.shape(match.setting)}"


def table(match: Match) -> str:
    moved, flops = match.op.bytes(match.setting), match.op.flops(match.setting)
    terms = ", ".join(f"{name} {mib(size)}" for name, size in moved.items() if size >= 1 << 20)
    lines = [
        title(match),
        f"  must move {mib(sum(moved.values()))} ({terms or 'less than 1 MiB each'}),"
        f" compute {flops / 1e9:.3g} GFLOP",
        f"{COLUMNS} {'peak':>12}  {rate_name(match)}",
        *(line(match, m) for m in sorted(match.measured, key=lambda m: m.times.median)),
        *(f"  {name}: {reason}" for name, reason in match.skipped.items()),
    ]
    return "\n".join(lines)


def line(match: Match, m: Measured) -> str:
    over_ours = m.times.over(match.ours.times) if match.ours else float("nan")
    unit, scale = ("us", 1e6) if match.op.tiny else ("ms", 1e3)
    span = f"{scale * m.times.low:.2f}-{scale * m.times.high:.2f}"
    error = f"{max(m.errors.values()):.1e}" if m.errors else ""
    peak = "" if m.peak_bytes is None else mib(m.peak_bytes)
    return (
        f"  {MARKS.get(m.kind, '  ')}{m.name:26}"
        f" {scale * m.times.median:>7.2f} {unit} {span:>19}"
        f" {m.times.over(match.floor.times):>8.2f} {over_ours:>8.2f}"
        f" {error:>9} {peak:>12}  {rate(match, m):.1f}"
    )


def rate_name(match: Match) -> str:
    if match.op.tiny:
        return "us of CPU"
    return "GFLOP/s" if match.op.bound_by == "flops" else "GB/s"


def rate(match: Match, m: Measured) -> float:
    """Of what the op must do, in the unit that limits it; where that is the host, its CPU time."""
    if match.op.tiny:
        return 1e6 * statistics.median(m.times.cpu) if m.times.cpu else float("nan")
    if match.op.bound_by == "flops":
        return match.op.flops(match.setting) / m.times.median / 1e9
    return sum(match.op.bytes(match.setting).values()) / m.times.median / 1e9


def mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
