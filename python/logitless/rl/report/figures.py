"""The charts of a page, drawn, by their sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from logitless.rl.report import charts, svg, watch
from logitless.rl.report.summary import Runs, begun, pooled
from logitless.rl.report.svg import Chart
from logitless.rl.tracking.metrics import Row

# Of each method its place among all, which is its colour.
Slots = Mapping[str, int]


class Figure(NamedTuple):
    title: str
    drawn: Markup
    tells: str


class Figures(NamedTuple):
    legend: Markup
    sections: dict[str, list[Figure]]


def figures(summary: dict[str, Any], details: dict[str, Any], runs: Runs) -> Figures | None:
    """The legend of all charts, and the sections that have one; None: there is nothing to draw."""
    evaluated = {name: rows for name, rows in details["evaluations"].items() if rows}
    trained = {name: rows for name, by_seed in runs.items() if (rows := begun(by_seed))}
    slots = {name: i for i, name in enumerate(dict.fromkeys((*trained, *evaluated)))}
    sections = {
        "Which metrics to watch": of_metrics(trained, slots),
        "Evaluation": of_evaluations(evaluated, slots),
        "What entropy buys, and what a step costs": of_steps(trained, slots, summary),
    }
    shown = {title: found for title, found in sections.items() if found}
    return Figures(Markup(svg.legend(slots)), shown) if shown else None


def of_metrics(runs: Runs, slots: Slots) -> list[Figure]:
    rows = (row for by_seed in runs.values() for row in pooled(by_seed))
    return drawn((charts.curves(runs, slots, one), one.tells) for one in watch.of_rows(rows))


def of_evaluations(evaluated: Mapping[str, list[Row]], slots: Slots) -> list[Figure]:
    keys = dict.fromkeys(key for rows in evaluated.values() for row in rows for key in row)
    return drawn(
        (charts.evaluations(evaluated, slots, one), one.tells) for one in watch.of_evaluation(keys)
    )


def of_steps(runs: Runs, slots: Slots, summary: Mapping[str, Any]) -> list[Figure]:
    if not runs:
        return []
    steps = {name: pooled(by_seed) for name, by_seed in runs.items()}
    laws = {name: law for name in runs if (law := summary[name]["law"]) is not None}
    found = drawn(
        [
            (charts.law(steps, slots, laws), watch.LAW),
            (charts.entropy_change(steps, slots), watch.CHANGE),
        ]
    )
    times = Markup(svg.stacked(charts.times(steps), "seconds"))
    return [*found, Figure("Where a step's time goes", times, watch.TIME)]


def drawn(told: Iterable[tuple[Chart, str]]) -> list[Figure]:
    """The charts that have something in them."""
    return [
        Figure(chart.title, Markup(svg.draw(chart)), tells) for chart, tells in told if chart.series
    ]
