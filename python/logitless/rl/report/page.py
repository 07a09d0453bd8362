"""The files of a report: summary.json, run.json, the pictures, and an HTML page that has it all."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from logitless.rl.report import text
from logitless.rl.report.plots import save_plots
from logitless.rl.report.summary import Runs, begun, fit_law, pooled
from logitless.rl.tracking import files
from logitless.rl.tracking.metrics import WINDOW, Row

SUMMARY_FILE, DETAILS_FILE, REPORT_FILE = "summary.json", "run.json", "report.html"
TEMPLATE_FILE = "template.html.j2"
# The entropy, in nats, of a token in full colour: that of an even choice among 12.
FULL_HEAT = 2.5


def write(
    folder: Path,
    summary: dict[str, Any],
    details: dict[str, Any],
    runs: Runs,
    answers: dict[str, list[Row]],
) -> Path:
    """Writes summary.json, run.json, the PNGs and report.html; returns the report's path. answers:
    those to show of each method."""
    _write_json(folder / SUMMARY_FILE, summary)
    _write_json(folder / DETAILS_FILE, details)
    drawn = {name: rows for name, by_seed in runs.items() if (rows := begun(by_seed))}
    laws = {name: law for name, rows in drawn.items() if (law := fit_law(pooled(rows))) is not None}
    pictures = save_plots(folder, drawn, laws) if drawn else {}
    path = folder / REPORT_FILE
    files.write(path, render(summary, details, pictures, answers))
    return path


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """summary.json and run.json of the last report; empty where there was none."""
    summary, details = (
        json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for path in (folder / SUMMARY_FILE, folder / DETAILS_FILE)
    )
    return summary, details


def render(
    summary: dict[str, Any],
    details: dict[str, Any],
    pictures: dict[str, Path],
    answers: dict[str, list[Row]],
) -> str:
    """The page as one HTML text with its pictures inside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files(__package__).joinpath(TEMPLATE_FILE).read_text("utf-8")
    return environment.from_string(source).render(
        tables=text.tables(summary, details),
        seeds=text.most_seeds(details),
        pictures={title: _base64(path) for title, path in pictures.items()},
        complete=details["complete"],
        answers=answers,
        full_heat=FULL_HEAT,
        comparison=text.comparisons(details),
        checks=text.checks(details),
        window=WINDOW,
        notes=text.notes(details),
        details=json.dumps(details, indent=2),
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=2) + "\n")
