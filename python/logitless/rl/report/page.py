"""The files of a report: summary.json, run.json, and an HTML page that has it all."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from logitless.rl.report import text
from logitless.rl.report.charts import SMOOTH
from logitless.rl.report.figures import figures
from logitless.rl.report.scales import MOST_POINTS
from logitless.rl.report.summary import Runs
from logitless.rl.tracking import files
from logitless.rl.tracking.metrics import WINDOW, Row

SUMMARY_FILE, DETAILS_FILE, REPORT_FILE = "summary.json", "run.json", "report.html"
TEMPLATE_FILE = "template.html.j2"
# Files of this folder that the template has inside.
INSIDE = {"style": "style.css", "script": "script.js"}
# The entropy, in nats, of a token in full colour: that of an even choice among 12.
FULL_HEAT = 2.5


def write(
    folder: Path,
    summary: dict[str, Any],
    details: dict[str, Any],
    runs: Runs,
    answers: dict[str, list[Row]],
) -> Path:
    """Writes summary.json, run.json and report.html; returns the report's path. answers: those to
    show of each method."""
    _write_json(folder / SUMMARY_FILE, summary)
    _write_json(folder / DETAILS_FILE, details)
    path = folder / REPORT_FILE
    files.write(path, render(summary, details, runs, answers))
    return path


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """summary.json and run.json of the last report; empty where there was none."""
    summary, details = (
        json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for path in (folder / SUMMARY_FILE, folder / DETAILS_FILE)
    )
    return summary, details


def render(
    summary: dict[str, Any], details: dict[str, Any], runs: Runs, answers: dict[str, list[Row]]
) -> str:
    """The page as one HTML text with its charts inside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = resources.files(__package__)
    source = files.joinpath(TEMPLATE_FILE).read_text("utf-8")
    inside = {
        name: Markup(files.joinpath(file).read_text("utf-8")) for name, file in INSIDE.items()
    }
    return environment.from_string(source).render(
        **inside,
        tables=text.tables(summary, details),
        seeds=text.most_seeds(details),
        figures=figures(summary, details, runs),
        complete=details["complete"],
        answers=answers,
        full_heat=FULL_HEAT,
        any_selected=any(
            len(piece) > 3 for rows in answers.values() for row in rows for piece in row["pieces"]
        ),
        comparison=text.comparisons(details),
        checks=text.checks(details),
        window=WINDOW,
        smooth=SMOOTH,
        most_points=MOST_POINTS,
        rewards=text.rewards(details),
        notes=text.notes(details),
        details=json.dumps(details, indent=2),
    )


def _write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=2) + "\n")
