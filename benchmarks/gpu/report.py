"""results.md: what a person reads, made of results.json alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.store import DONE, FAILED, SKIPPED, Data

NAME = "results.md"
# Told case by case, with everything known of each implementation.
IN_FULL = ("headline", "others", "smoke")
REASON_CHARACTERS = 300


def report(data: Data) -> str:
    parts = [header(data), stages(data), targets(data), tests(data)]
    parts += [full(data, stage) for stage in IN_FULL]
    parts += [sizes(data), checks(data), profile(data), left_out(data), built(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def troubles(data: Data) -> list[str]:
    """What went wrong; what was skipped for a reason is not trouble."""
    found = []
    for name, stage in data["stages"].items():
        if stage.get("status") in (FAILED, "timed out"):
            found.append(f"{name}: {stage['status']}")
        for key, case in stage.get("cases", {}).items():
            if case["status"] == FAILED or (case["status"] == DONE and case.get("reason")):
                found.append(f"{name}, {key}: {case.get('reason', '')}")
    return found


def header(data: Data) -> str:
    lines = [f"# {data['device']}"]
    if data["rehearsal"]:
        lines += ["", "**A rehearsal: nothing here was measured, nothing ran on a GPU.**"]
    lines += ["", f"Begun {data['started']}, sources {data['sources']}."]
    facts = cases(data, "environment").get("facts", {}).get("facts", {})
    for gpu in facts.get("gpus", []):
        lines += ["", ", ".join(f"{name} {value}" for name, value in gpu.items()) + "."]
    if facts.get("neighbours"):
        lines += ["", f"**Not alone on the GPU**: {'; '.join(facts['neighbours'])}."]
    tools = {**facts.get("packages", {}), **facts.get("programs", {})}
    there = [f"{name} {version}" for name, version in tools.items() if version]
    absent = [name for name, version in tools.items() if not version]
    if tools:
        lines += ["", f"{facts['cpu']}; Python {facts['python']}; {', '.join(there)}."]
    if absent:
        lines += ["", f"Absent: {', '.join(absent)}."]
    return "\n".join(lines)


def cases(data: Data, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = data["stages"].get(stage, {}).get("cases", {})
    return found


def rows(head: str, body: Iterator[str] | list[str]) -> str:
    body = list(body)
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *body]) if body else ""


def cell(text: str) -> str:
    """On one line, and no longer than a table bears."""
    short = " ".join(text.split())[:REASON_CHARACTERS]
    return short.replace("|", "\\|")


def stages(data: Data) -> str:
    lines = []
    for name, stage in data["stages"].items():
        found = stage.get("cases", {}).values()
        done = sum(case["status"] == DONE for case in found)
        planned = len(stage.get("planned") or found)
        took = "" if data["rehearsal"] else stage.get("seconds", "")
        lines.append(
            f"| {name} | {stage.get('status')} | {took} | {done} of {planned}"
            f" | {cell(stage.get('reason', ''))} |"
        )
    return "## Stages\n\n" + rows("stage | status | s | cases | reason", lines)


def targets(data: Data) -> str:
    found = [
        line
        for stage in data["stages"].values()
        for case in stage.get("cases", {}).values()
        for line in case.get("targets", ())
    ]
    return "## Targets\n\n```\n" + "\n".join(found) + "\n```" if found else ""


def tests(data: Data) -> str:
    found = cases(data, "tests")
    if "count" not in found:
        return ""
    counts = ", ".join(f"{n} {outcome}" for outcome, n in found["count"]["counts"].items())
    failed = [f"- `{key}`: {cell(c['reason'])}" for key, c in found.items() if key != "count"]
    return "\n".join([f"## Tests\n\n{counts}.", *failed])


def full(data: Data, stage: str) -> str:
    """A table of every implementation for each case."""
    parts = []
    for key, case in cases(data, stage).items():
        if not case.get("measured"):
            continue
        if data["rehearsal"]:
            head = "who | error"
            lines = [f"| {m['name']} | {error(m)} |" for m in case["measured"]]
        else:
            head = "who | median ms | range | until it returns ms | GB/s | TFLOP/s | of the floor"
            head += " | error | peak MiB"
            ordered = sorted(case["measured"], key=lambda m: m["median_ms"])
            lines = [full_line(m) for m in ordered]
        parts.append(f"### {key}\n\n" + rows(head, lines))
    return f"## {stage.capitalize()}\n\n" + "\n\n".join(parts) if parts else ""


def full_line(m: dict[str, Any]) -> str:
    runs = m["runs_ms"]
    mine = f"**{m['name']}**" if m["kind"] == "ours" else m["name"]
    host = "" if m.get("host_ms") is None else f"{m['host_ms']:.3f}"
    peak = "" if m["peak_bytes"] is None else f"{m['peak_bytes'] / 2**20:.0f}"
    return (
        f"| {mine} | {m['median_ms']:.3f} | {min(runs):.3f}-{max(runs):.3f} | {host}"
        f" | {m['bytes_per_second'] / 1e9:.0f} | {m['flops_per_second'] / 1e12:.2f}"
        f" | {100 / m['over_floor']:.1f}% | {error(m)} | {peak} |"
    )


def error(m: dict[str, Any]) -> str:
    return f"{max(m['errors'].values()):.1e}" if m["errors"] else ""


def sizes(data: Data) -> str:
    """A table for each op: a line per size, a column per implementation: ms, and the part of
    the floor's rate."""
    found = [c for stage in ("headline", "sizes") for c in cases(data, stage).values()]
    found = [case for case in found if case.get("measured") and case.get("rows_of_sizes")]
    if not found or data["rehearsal"]:
        return ""
    parts = []
    for op in sorted({case["op"] for case in found}):
        mine = [case for case in found if case["op"] == op]
        names = list(dict.fromkeys(m["name"] for case in mine for m in case["measured"]))
        lines = [
            size_line(list(alike), names)
            for _, alike in itertools.groupby(sorted(mine, key=size), key=size)
        ]
        parts.append(f"### {op}\n\n" + rows(f"N | V | dtype | {' | '.join(names)}", lines))
    note = "Milliseconds, and the floor's time as a part of it."
    return "## Sizes\n\n" + note + "\n\n" + "\n\n".join(parts)


def size(case: dict[str, Any]) -> tuple[str, int, int]:
    at = case["setting"]
    return at["dtype"], at["vocab"], at["rows"]


def size_line(alike: list[dict[str, Any]], names: list[str]) -> str:
    """The cases of one size, of which the first to have an implementation gives its time."""
    at = alike[0]["setting"]
    by_name = {m["name"]: m for case in reversed(alike) for m in case["measured"]}
    cells = [
        f"{by_name[n]['median_ms']:.3f}, {100 / by_name[n]['over_floor']:.0f}%"
        if n in by_name
        else ""
        for n in names
    ]
    return f"| {at['rows']} | {at['vocab']} | {at['dtype']} | {' | '.join(cells)} |"


def checks(data: Data) -> str:
    lines = [
        f"| {tool} | {case['status']} | {cell(case.get('reason', ''))} |"
        for tool, case in cases(data, "sanitizer").items()
    ]
    table = rows("tool | status | reason", lines)
    return "## compute-sanitizer\n\n" + table if table else ""


def profile(data: Data) -> str:
    parts = []
    for key, case in cases(data, "profile").items():
        kernels = case.get("kernels") or []
        if kernels:
            names = list(dict.fromkeys(name for kernel in kernels for name in kernel))
            lines = [
                "| " + " | ".join(cell(str(kernel.get(n, ""))[:60]) for n in names) + " |"
                for kernel in kernels
            ]
            parts.append(f"### {key}\n\n" + rows(" | ".join(names), lines))
    return "## Kernels\n\n" + "\n\n".join(parts) if parts else ""


def left_out(data: Data) -> str:
    """Implementations and cases without a number, by name, each reason once."""
    why: dict[str, list[str]] = {}
    for name, stage in data["stages"].items():
        found = stage.get("cases", {})
        for key, case in found.items():
            for who, reason in case.get("skipped", {}).items():
                why.setdefault(f"{who}: {cell(reason)}", []).append(key)
            if case["status"] in (SKIPPED, FAILED) and not case.get("measured"):
                why.setdefault(f"{name}: {cell(case.get('reason', ''))}", []).append(key)
        for key in stage.get("planned", ()):
            if key not in found:
                why.setdefault(f"{name}: not begun", []).append(key)
    lines = [f"- {reason} ({summary(keys)})" for reason, keys in why.items()]
    return "## Left out\n\n" + "\n".join(lines) if lines else ""


def summary(keys: list[str]) -> str:
    """All cases by name where they are few."""
    named = "; ".join(keys[:12])
    return named if len(keys) <= 12 else f"{named}; and {len(keys) - 12} more"


def built(data: Data) -> str:
    found = cases(data, "build")
    reason = found.get("package", {}).get("reason")
    doctor = found.get("doctor", {}).get("text")
    lines = [f"```\n{reason}\n```"] if reason else []
    if doctor:
        lines.append(f"```\n{doctor.strip()}\n```")
    return "## Build\n\n" + "\n\n".join(lines) if lines else ""
