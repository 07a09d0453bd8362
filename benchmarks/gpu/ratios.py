"""Ratios of the times of two runs: below 1 the second is faster."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.store import Data

Times = dict[tuple[str, str], float]


def times(data: Data) -> Times:
    """(case, implementation) -> median in milliseconds."""
    if data.get("rehearsal"):
        raise ValueError("the times of a rehearsal mean nothing and were not kept")
    return {
        (key, m["name"]): m["median_ms"]
        for stage in data["stages"].values()
        for key, case in stage.get("cases", {}).items()
        for m in case.get("measured", ())
    }


def table(first: Data, second: Data, names: tuple[str, str]) -> str:
    a, b = times(first), times(second)
    lines = [
        f"A: {about(first)}, {names[0]}",
        f"B: {about(second)}, {names[1]}",
        "",
        "| case | who | A ms | B ms | B / A |",
        "|---|---|--:|--:|--:|",
        *(
            f"| {key} | {who} | {a[key, who]:.3f} | {b[key, who]:.3f}"
            f" | {b[key, who] / a[key, who]:.3f} |"
            for key, who in a
            if (key, who) in b
        ),
    ]
    for name, mine, other in (("A", a, b), ("B", b, a)):
        alone = sorted(f"{key}: {who}" for key, who in mine if (key, who) not in other)
        if alone:
            lines += ["", f"Only in {name}:", "", *(f"- {line}" for line in alone)]
    return "\n".join(lines)


def about(data: Data) -> str:
    facts: dict[str, Any] = data
    return f"{facts['device']}, begun {facts['started']}, sources {facts['sources']}"
