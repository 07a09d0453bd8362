"""What a run leaves to read: summary.json, pictures, and one HTML file that holds them all."""

from __future__ import annotations

import base64
import html
import json
import statistics
from pathlib import Path
from typing import Any

import logitless as ll
from logitless.rl import metrics
from logitless.rl.metrics import Row

SUMMARY_FILE, DETAILS_FILE, REPORT_FILE = "summary.json", "run.json", "report.html"

# Fewer points than this cannot tell a line from noise.
LAW_POINTS = 5

NOTES = [
    f"“first” and “last” are means over the first and the last {metrics.WINDOW} steps. "
    "Entropy is in nats per sampled token. Rewards are the share of right answers.",
    "In the plots a faint line is a step, a strong one the mean of the last five. The bar at "
    "exp(entropy) = 1 is the 95% interval of the law's ceiling, steps taken as independent.",
    "The law R = -a exp(H) + b is fitted to one point a step of this run alone. Reward rises and "
    "entropy falls throughout, so any monotone curve fits well; a ceiling b - a above 1 is no "
    "prediction, since a reward cannot exceed 1.",
]


def summarize(runs: dict[str, list[Row]], head_bytes: dict[str, int]) -> dict[str, Any]:
    """Per method: the numbers of summary.json. Bytes of the head are None where they were not
    measured.
    """
    return {name: _summarize(rows, head_bytes.get(name)) for name, rows in runs.items() if rows}


def _summarize(rows: list[Row], head_bytes: int | None) -> Row:
    law = fit_law(rows)
    keys = ("a", "b", "ceiling", "r2", "interval")
    return {
        "reward_first": metrics.first(rows, "reward"),
        "reward_last": metrics.last(rows, "reward"),
        "entropy_first": metrics.first(rows, "entropy"),
        "entropy_last": metrics.last(rows, "entropy"),
        "distinct_right_answers_last": metrics.last(rows, "distinct_right_answers"),
        "law": None if law is None else {key: _plain(getattr(law, key)) for key in keys},
        "selected_tokens": sum(metrics.column(rows, "selected_tokens")),
        "seconds": sum(metrics.column(rows, "seconds")),
        "peak_memory_bytes": max(metrics.column(rows, "peak_memory_bytes")),
        "head_memory_bytes": head_bytes,
        "full_logits_bytes": max(metrics.column(rows, "full_logits_bytes")),
    }


def fit_law(rows: list[Row]) -> Any | None:
    entropy = metrics.column(rows, "entropy")
    if len(rows) < LAW_POINTS or len(set(entropy)) == 1:
        return None
    return ll.fit_entropy_law(entropy, metrics.column(rows, "reward"))


def write(
    folder: Path, summary: dict[str, Any], details: dict[str, Any], runs: dict[str, list[Row]]
) -> Path:
    """Writes summary.json, run.json, the PNGs and report.html; returns the report's path."""
    from logitless.rl.plots import save_plots

    _write_json(folder / SUMMARY_FILE, summary)
    _write_json(folder / DETAILS_FILE, details)
    runs = {name: rows for name, rows in runs.items() if rows}
    laws = {name: law for name, rows in runs.items() if (law := fit_law(rows)) is not None}
    pictures = save_plots(folder, runs, laws) if runs else {}
    path = folder / REPORT_FILE
    path.write_text(render(summary, details, pictures), "utf-8")
    return path


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


def text_table(summary: dict[str, Any]) -> list[str]:
    lines = table(summary)
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


def support_rows(runs: dict[str, list[Row]]) -> float | None:
    """Mean share of the rows that tail_mass served, over all methods' steps; None: without it."""
    key = "actor/support_rows"
    shares = [row[key] for rows in runs.values() for row in rows if key in row]
    return statistics.fmean(shares) if shares else None


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


def render(summary: dict[str, Any], details: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The report as one HTML text with its pictures inside."""
    head, *rows = table(summary)
    sections = [
        f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' "
        f"src='data:image/png;base64,{_base64(path)}'>"
        for title, path in pictures.items()
    ]
    ended = "" if details["complete"] else "<p><b>This run was stopped before its end.</b></p>"
    comparison = ""
    if details["comparison"] is not None:
        lines = comparison_lines(details["comparison"], details["recipe"]["update"]["tail_mass"])
        text = html.escape("\n".join(lines))
        comparison = (
            f"<h2>The same step with full logits</h2><pre>{text}</pre><p>{COMPARISON_NOTE}</p>"
        )
    said = " ".join([self_check(details), *support_lines(details)])
    checks = f"<h2>Self-check</h2><p>{html.escape(said)}</p>"
    notes = (
        "<h2>How to read this</h2><ul>"
        + "".join(f"<li>{html.escape(n)}</li>" for n in [*NOTES, *details["recipe"]["notes"]])
        + "</ul>"
    )
    recipe = f"<h2>Recipe and versions</h2><pre>{html.escape(json.dumps(details, indent=2))}</pre>"
    body = [_html_table(head, rows), *sections, comparison, checks, notes, recipe]
    return PAGE.format(style=STYLE, ended=ended, body="\n".join(body))


COMPARISON_NOTE = (
    "Time: one minibatch, forward and backward of body and head, both kinds by turns in one"
    " process, medians. "
    "Memory: how far the resident set grows during the head's forward and backward, each in"
    " a process of its own; "
    "parameters, inputs and gradient buffers exist before and are not counted."
)


def self_check(details: dict[str, Any]) -> str:
    gap = details["max_logp_gap"]
    if gap is None:
        return "No step was finished."
    return (
        f"Largest difference between a token's log-prob when it was sampled and when it was "
        f"trained on, "
        f"before the step's first update: {gap:.1e} nats."
    )


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    lines = ["<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, (tuple, list)) else float(value)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; color: #222 }
table { border-collapse: collapse }
th, td { padding: .3em .9em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
pre { background: #f6f6f6; padding: 1em; overflow: auto; max-height: 30em }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>logitless: training report</title>
<style>{style}</style></head><body><h1>logitless: training report</h1>{ended}
{body}
</body></html>
"""
