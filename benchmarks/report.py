"""What a run leaves: a table for the terminal and JSON for machines."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import logitless as ll
from benchmarks.about import cpu_model, git, installed
from benchmarks.case import Setting
from benchmarks.match import Match, Measured
from benchmarks.peers import PEERS
from benchmarks.timing import last_level_cache

COLUMNS = f"{'':30} {'median':>10} {'range':>19} {'x floor':>8} {'x ours':>8} {'error':>9}"


def machine(device: str) -> dict[str, Any]:
    """What someone needs who wants to see the same numbers."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache(device),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "logitless": ll.build_info(),
        "peers": {peer.name: installed(peer.package) for peer in PEERS},
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len((git("status", "--porcelain") or "").splitlines()),
        "command": " ".join([program(), *sys.argv[1:]]),
    }


def program() -> str:
    name = Path(sys.argv[0]).stem
    return "./dev bench" if name == "run" else f"python -m benchmarks.{name}"


def title(match: Match) -> str:
    return f"{match.op.name}  {describe(match.setting, match.op.group)}"


def describe(s: Setting, group: str) -> str:
    shapes = {
        "rows": f"[{s.rows}, {s.vocab}] {s.dtype}, logits {s.logits}",
        "head": f"N={s.rows} H={s.width} V={s.vocab} {s.dtype}, logits {s.logits}",
        "losses": f"N={s.rows} float32",
    }
    return shapes.get(group, shapes["head"])


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
    span = f"{1e3 * m.times.low:.2f}-{1e3 * m.times.high:.2f}"
    error = f"{max(m.errors.values()):.1e}" if m.errors else ""
    peak = "" if m.peak_bytes is None else mib(m.peak_bytes)
    return (
        f"  {'= ' if m.kind == 'floor' else '* ' if m.kind == 'ours' else '  '}{m.name:26}"
        f" {1e3 * m.times.median:>7.2f} ms {span:>19}"
        f" {m.times.over(match.floor.times):>8.2f} {over_ours:>8.2f}"
        f" {error:>9} {peak:>12}  {rate(match, m):.1f}"
    )


def rate_name(match: Match) -> str:
    return "GFLOP/s" if match.op.group == "head" else "GB/s"


def rate(match: Match, m: Measured) -> float:
    """Of what the op must do, in the unit that limits it."""
    if match.op.group == "head":
        return match.op.flops(match.setting) / m.times.median / 1e9
    return sum(match.op.bytes(match.setting).values()) / m.times.median / 1e9


def mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
