"""The lines of a report, the same on the terminal and in the page."""

from __future__ import annotations

from typing import Any

from logitless.rl.tracking.metrics import Row

HEADER = [
    "",
    "reward",
    "entropy",
    "distinct right",
    "ceiling b - a",
    "selected tokens",
    "seconds",
    "head memory",
]


def table(summary: dict[str, Any]) -> list[list[str]]:
    """The small table of terminal and report: HEADER, then a row a method."""
    return [HEADER] + [
        [
            name,
            f"{row['reward_first']:.3f} → {row['reward_last']:.3f}",
            f"{row['entropy_first']:.3f} → {row['entropy_last']:.3f}",
            f"{row['distinct_right_answers_last']:.1f}",
            "-" if row["law"] is None else f"{row['law']['ceiling']:.2f}",
            str(row["selected_tokens"]),
            f"{row['seconds']:.0f}",
            megabytes(row["head_memory_bytes"]),
        ]
        for name, row in summary.items()
    ]


def evaluation_table(evaluations: dict[str, list[Row]]) -> list[list[str]]:
    """A row a method, from its first evaluation to its last; none where there was no evaluation."""
    done = {name: rows for name, rows in evaluations.items() if rows}
    if not done:
        return []
    most = max(int(key[5:]) for rows in done.values() for key in rows[0] if key[:5] == "pass@")
    columns = {
        "right": "right", f"pass@{most}": f"pass@{most}", "greedy": "greedy_right",
        "entropy": "entropy", "distinct right": "distinct_right_answers",
    }  # fmt: skip
    return [
        ["evaluation", *columns],
        *[
            [name, *[f"{rows[0][key]:.3f} → {rows[-1][key]:.3f}" for key in columns.values()]]
            for name, rows in done.items()
        ],
    ]


def aligned(lines: list[list[str]]) -> list[str]:
    """The columns of a table, one under the other."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def comparison_lines(comparison: dict[str, Any] | None, tail_mass: float) -> list[str]:
    if comparison is None:
        return []
    faster = comparison["seconds_full_logits"] / comparison["seconds"]
    smaller = comparison["bytes_full_logits"] / max(comparison["bytes"], 1)
    ours = f"logitless, tail_mass={tail_mass:g}" if tail_mass else "logitless"
    exact = comparison["seconds_exact"]

    def line(name: str, seconds: float, size: str) -> str:
        return f"  {name:{len(ours) + 1}}{seconds * 1e3:7.0f} ms   {size:>9}".rstrip()

    return [
        f"One training step of {comparison['rows']} tokens over {comparison['vocab_size']:,}"
        f" entries, forward and backward:",
        line(ours, comparison["seconds"], megabytes(comparison["bytes"])),
        *([] if exact is None else [line("logitless, exact", exact, "")]),
        line(
            "full logits",
            comparison["seconds_full_logits"],
            megabytes(comparison["bytes_full_logits"]),
        )
        + f"   ({faster:.1f} times the time, {smaller:.1f} times the memory)",
    ]


def support_lines(details: dict[str, Any]) -> list[str]:
    share, tail_mass = details["support_rows"], details["recipe"]["update"]["tail_mass"]
    if share is None:
        return []
    return [
        f"tail_mass={tail_mass:g}: {share:.1%} of the rows with a gradient got it from their"
        " largest entries, the others from every entry."
    ]


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f} MB"


def self_check(details: dict[str, Any]) -> str:
    gap = details["max_logp_gap"]
    if gap is None:
        return "No step was finished."
    return (
        f"Largest difference between a token's log-prob when it was sampled and when it was "
        f"trained on, "
        f"before the step's first update: {gap:.1e} nats."
    )
