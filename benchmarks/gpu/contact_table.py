"""What contact.py found, as JSON and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]
# Of the short table, which is all that may be seen of a run whose files are lost.
SHORT_CHARACTERS = 9000
# Column, its key, digits.
COLUMNS = (
    ("ms", "ms", 3), ("predicted ms", "predicted_ms", 2), ("of bare", "of_bare", 2),
    ("TF/s", "tflops", 0), ("GB/s", "gb_s", 0), ("host ms", "host_ms", 2),
    ("launches", "launches", 0), ("waits", "waits", 0),
)  # fmt: skip


def collect(events: list[Fields]) -> dict[str, Fields]:
    """step -> its status, reason, and cases in the order in which they began."""
    steps: dict[str, Fields] = {}
    for event in events:
        step = steps.setdefault(event["step"], {"status": "running", "cases": {}})
        fields = {k: v for k, v in event.items() if k not in ("step", "key", "at")}
        if "key" in event:
            step["cases"][str(event["key"])] = fields
        elif event["status"] != "running" or step["status"] == "running":
            step.update(fields)
    return steps


def as_json(data: Fields) -> str:
    return json.dumps(clean(data), indent=1, default=str) + "\n"


def clean(value: Any) -> Any:
    """Without what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    return [clean(v) for v in value] if isinstance(value, (list, tuple)) else value


def failures(data: Fields) -> list[str]:
    """What went wrong, a line each."""
    lines = [f"unreadable: {line}" for line in data.get("garbage", [])]
    if data.get("package", {}).get("how") == "none":
        lines.append(f"no package: {first_line(data['package'].get('reason'))}")
    for name, step in data.get("steps", {}).items():
        if step["status"] in ("failed", "timed out"):
            lines.append(f"{name} {step['status']}: {first_line(step.get('reason'))}")
        for key, case in step["cases"].items():
            if case.get("status") == "failed":
                lines.append(f"{name} {key}: {first_line(case.get('reason'))}")
    return lines


def first_line(text: Any) -> str:
    return next(iter(str(text or "").strip().splitlines()), "")[:200]


def number(value: Any, digits: int) -> str:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:.{digits}f}" if good else ""


def gib(value: Any) -> str:
    return number(value / 2**30, 2) if isinstance(value, (int, float)) else ""


def lines_of(step: Fields) -> Iterator[tuple[str, ...]]:
    """Of each case with a time: its key and its cells."""
    for key, case in step["cases"].items():
        if isinstance(case.get("ms"), (int, float)) and case.get("status") == "done":
            cells = [number(case.get(name), digits) for _, name, digits in COLUMNS]
            yield key, *cells, gib(case.get("peak_bytes")), gib(case.get("plan_bytes"))


HEADER = ("case", *(name for name, _, _ in COLUMNS), "peak GiB", "plan GiB")


def table(data: Fields) -> str:
    """table.md: all of it."""
    facts = data.get("facts", {})
    gpus = [gpu.get("name", "") for gpu in facts.get("gpus", [])]
    lines = [f"# First contact: {', '.join(gpus) or data.get('device', '')}", ""]
    if data.get("tiny"):
        lines += ["Next to nothing was computed: times mean nothing.", ""]
    package = data.get("package", {})
    lines += [
        f"Sources {data.get('sources')}; the package: {package.get('how', 'unknown')}. *Predicted*"
        " is the model of predict.py, not a measurement; *of bare* the time over that of the bare"
        " products.", "",
    ]  # fmt: skip
    for name, step in data.get("steps", {}).items():
        lines += [f"## {name}: {step['status']} {first_line(step.get('reason'))}".rstrip(), ""]
        rows = list(lines_of(step))
        if rows:
            # Columns that nobody has are left out.
            used = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
            lines.append("| " + " | ".join(HEADER[i] for i in used) + " |")
            lines.append("|---|" + "--:|" * (len(used) - 1))
            lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in rows]
            lines.append("")
        for key, case in step["cases"].items():
            if case.get("status") != "done":
                lines.append(f"- {key}: {case.get('status')}, {first_line(case.get('reason'))}")
            elif "ms" not in case:
                told = case.get("said", case.get("error", case.get("errors", "")))
                lines.append(f"- {key}: {str(told)[:300]}")
        lines.append("")
    wrong = failures(data)
    lines += ["## Failures", "", *(f"- {line}" for line in wrong or ["none"])]
    return "\n".join(lines) + "\n"


def short(data: Fields) -> str:
    """What is printed last: a line a case, then what failed; the steps' own ends first to go."""
    lines = ["", "step case: ms (predicted), times bare, rate"]
    for name, step in data.get("steps", {}).items():
        right = sum(case.get("status") == "done" for case in step["cases"].values())
        lines.append(f"{name} {step['status']}: {right} of {len(step['cases'])} cases")
        for key, case in step["cases"].items():
            if isinstance(case.get("ms"), (int, float)) and case.get("status") == "done":
                lines.append(f"  {key}: {brief(case)}")
    text = "\n".join(lines)
    wrong = failures(data)
    end = "\n".join(["", f"{len(wrong)} failures", *(f"  {line}" for line in wrong[:25])])
    room = SHORT_CHARACTERS - len(end)
    if len(text) > room:
        text = f"{text[:room]}\n  ... the rest is in table.md"
    return f"{text}{end}\nin {data.get('seconds')} s"


def brief(case: Fields) -> str:
    parts = [number(case["ms"], 2)]
    if "predicted_ms" in case:
        parts.append(f"({number(case['predicted_ms'], 1)})")
    if "of_bare" in case:
        parts.append(f"{number(case['of_bare'], 2)}x")
    for key, unit in (("tflops", "TF/s"), ("gb_s", "GB/s")):
        if key in case:
            parts.append(f"{number(case[key], 0)} {unit}")
    return " ".join(parts)
