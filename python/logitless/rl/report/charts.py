"""The report's charts, as data: what is drawn of the metrics of each method."""

from __future__ import annotations

import math
from collections.abc import Mapping

from logitless.rl.report.summary import Runs, steps_of_all
from logitless.rl.report.svg import Chart, Series
from logitless.rl.report.watch import Watched
from logitless.rl.tracking.metrics import Row, column

# Of each method the rows of all its seeds.
Steps = Mapping[str, list[Row]]
SMOOTH = 5

# The parts of a step in their order, by the names of its stopwatch.
PARTS = (
    "hand over",
    "rollout body",
    "rollout head",
    "rollout server",
    "reward",
    "dropped answers",
    "train body",
    "train head",
    "optimizer",
    "entropy probe",
    "reference",
)


def curves(runs: Runs, slots: Mapping[str, int], one: Watched) -> Chart:
    """A metric over the steps, of the methods that have it."""
    series = [
        curve(name, slots[name], list(by_seed.values()), one.key) for name, by_seed in runs.items()
    ]
    having = [found for found in series if found.x]
    return Chart(one.title, "step", one.unit, having, whole_x=True, zero=one.zero)


def curve(name: str, slot: int, seeds: list[list[Row]], key: str) -> Series:
    """One seed: the mean of its last few steps, and its steps. Several: the mean of these means,
    and a band from the smallest to the largest, over the steps that all of them have."""
    having = [[row for row in rows if key in row] for rows in seeds]
    together = list(steps_of_all(having)) if all(having) else []
    values = [[rows[seed][key] for _, rows in together] for seed in range(len(seeds))]
    smoothed = [*zip(*map(smooth, values), strict=True)]
    return Series(
        name,
        slot,
        x=[step + 1 for step, _ in together],
        y=[math.fsum(of_step) / len(of_step) for of_step in smoothed],
        low=[min(of_step) for of_step in smoothed] if len(seeds) > 1 else (),
        high=[max(of_step) for of_step in smoothed] if len(seeds) > 1 else (),
        single=values[0] if len(seeds) == 1 else (),
    )


def smooth(values: list[float]) -> list[float]:
    """Mean of the last SMOOTH values at each place."""
    parts = (values[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(values)))
    return [math.fsum(part) / len(part) for part in parts]


def law(steps: Steps, slots: Mapping[str, int], laws: Mapping[str, Row]) -> Chart:
    """A point a step, and each method's law as far as its points go; where it has a ceiling, down
    to that, which it predicts at exp(0) = 1."""
    series = []
    for name, rows in steps.items():
        x, y = [math.exp(h) for h in column(rows, "entropy")], column(rows, "reward")
        series.append(Series(name, slots[name], x, y, "points"))
        if (found := laws.get(name)) is None:
            continue
        has_ceiling = found["ceiling"] is not None
        ends = [1.0 if has_ceiling else min(x), max(x)]
        line = [found["b"] - found["a"] * end for end in ends]
        series.append(Series(name, slots[name], ends, line, "fit"))
        if has_ceiling:
            low, high = found["interval"]
            series.append(
                Series(name, slots[name], [1.0], [found["ceiling"]], "bar", [low], [high])
            )
    return Chart("Reward against exp(entropy)", "exp(entropy)", "reward", series)


def entropy_change(steps: Steps, slots: Mapping[str, int]) -> Chart:
    """A point a probed step."""
    probed = {
        name: [row for row in rows if "entropy_change" in row] for name, rows in steps.items()
    }
    series = [
        Series(
            name, slots[name], column(rows, "entropy_change_predicted"),
            column(rows, "entropy_change"), "points",
        )
        for name, rows in probed.items()
        if rows
    ]  # fmt: skip
    title = "Entropy change of an update"
    return Chart(title, "predicted, nats", "measured, nats", series, diagonal=True)


def evaluations(runs: Mapping[str, list[Row]], slots: Mapping[str, int], one: Watched) -> Chart:
    """A number of the evaluations over the steps, of the methods that have it."""
    having = {name: [row for row in rows if one.key in row] for name, rows in runs.items()}
    series = [
        Series(name, slots[name], column(rows, "step"), column(rows, one.key))
        for name, rows in having.items()
        if rows
    ]
    return Chart(one.title, "steps done", one.unit, series, whole_x=True, zero=one.zero)


def times(steps: Steps) -> dict[str, dict[str, float]]:
    """Of each method the mean seconds of the parts of a step; what runs on some steps only is
    spread over all."""
    return {
        name: {
            part: seconds
            for part in PARTS
            if (seconds := math.fsum(row.get(f"seconds/{part}", 0.0) for row in rows) / len(rows))
        }
        for name, rows in steps.items()
    }
