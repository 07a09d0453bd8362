"""The report's pictures, each a function from metrics to a matplotlib figure."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from logitless.rl.report.summary import Runs, pooled, steps_of_all
from logitless.rl.tracking import files
from logitless.rl.tracking.metrics import Row, column

matplotlib.use("Agg")

from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, too.
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
SMOOTH = 5
# Of each method the rows of all its seeds.
Steps = dict[str, list[Row]]

# The parts of a step in their order, by the names of its stopwatch.
PARTS = [
    "rollout body",
    "rollout head",
    "reward",
    "dropped answers",
    "train body",
    "train head",
    "optimizer",
    "entropy probe",
    "reference",
]


def save_plots(folder: Path, runs: Runs, laws: dict[str, Any]) -> dict[str, Path]:
    """Draws the pictures that the metrics have numbers for; returns title -> PNG."""
    steps = {name: pooled(by_seed) for name, by_seed in runs.items()}
    figures = {
        "Reward and entropy": ("curves.png", curves(runs)),
        "Reward against exp(entropy), with the fitted law": ("law.png", law_plot(steps, laws)),
        "Covariance of log-prob and advantage": ("covariance.png", covariance_plot(runs)),
        "Where a step's time goes": ("time.png", time_plot(steps)),
    }
    if any("entropy_change" in row for rows in steps.values() for row in rows):
        figures["Entropy change of an update: predicted and measured"] = (
            "entropy_change.png",
            entropy_change_plot(steps),
        )
    paths = {}
    for title, (name, figure) in figures.items():
        with files.replaced(folder / name) as part:
            figure.savefig(part, dpi=110)
        paths[title] = folder / name
    return paths


def curves(runs: Runs) -> Figure:
    figure, axes = _figure(3)
    labels = ["reward", "entropy (nats per token)", "distinct right answers per prompt"]
    for axis, key, label in zip(
        axes, ["reward", "entropy", "distinct_right_answers"], labels, strict=True
    ):
        for (name, by_seed), color in zip(runs.items(), cycle(COLORS), strict=False):
            draw_curve(axis, list(by_seed.values()), key, color, name)
        axis.set(xlabel="step", title=label)
    axes[0].legend(frameon=False)
    return figure


def draw_curve(axis: Any, seeds: list[list[Row]], key: str, color: str, name: str) -> None:
    """One seed: its steps, and their mean over the last few. Several: the mean of these, and a band
    from the smallest to the largest."""
    shared = list(steps_of_all(seeds))
    steps = [step for step, _ in shared]
    values = [[rows[seed][key] for _, rows in shared] for seed in range(len(seeds))]
    smoothed = np.array([smooth(of_seed) for of_seed in values])
    if len(seeds) == 1:
        axis.plot(steps, values[0], color=color, alpha=0.25, linewidth=1)
    else:
        low, high = smoothed.min(axis=0), smoothed.max(axis=0)
        axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    axis.plot(steps, smoothed.mean(axis=0), color=color, label=name, linewidth=2)


def law_plot(runs: Steps, laws: dict[str, Any]) -> Figure:
    figure, axes = _figure(len(runs))
    for axis, (name, rows), color in zip(axes, runs.items(), cycle(COLORS), strict=False):
        entropy, reward = np.array(column(rows, "entropy")), np.array(column(rows, "reward"))
        axis.scatter(np.exp(entropy), reward, color=color, s=12, alpha=0.7)
        title = f"{name}: too few steps to fit"
        if (law := laws.get(name)) is not None:
            grid = np.linspace(0.0, entropy.max(), 100)
            axis.plot(np.exp(grid), np.asarray(law.predict(grid)), color="black", linewidth=1.5)
            low, high = law.interval
            # At exp(0) = 1 the law predicts its ceiling: the bar is the ceiling's interval.
            axis.errorbar(
                [1.0], [law.ceiling], yerr=[[law.ceiling - low], [high - law.ceiling]],
                color="black", marker="o", markersize=4, capsize=5,
            )  # fmt: skip
            title = f"{name}: R = -{law.a:.3f} exp(H) + {law.b:.3f}, R² {law.r2:.2f}"
        axis.set(xlabel="exp(entropy)", ylabel="reward", title=title)
        axis.title.set_fontsize(10)
    return figure


def covariance_plot(runs: Runs) -> Figure:
    figure, axes = _figure(1)
    for (name, by_seed), color in zip(runs.items(), cycle(COLORS), strict=False):
        draw_curve(axes[0], list(by_seed.values()), "covariance", color, name)
    axes[0].axhline(0.0, color="grey", linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="covariance over the step's tokens")
    axes[0].legend(frameon=False)
    return figure


def time_plot(runs: Steps) -> Figure:
    """Mean seconds of each part of a step, stacked; the entropy probe runs on some steps only and
    is spread over all.
    """
    figure, axes = _figure(1)
    left = np.zeros(len(runs))
    for part, color in zip(PARTS, [*COLORS, "#f0e442", "#999999", "#555555"], strict=True):
        means = [
            np.mean([row.get(f"seconds/{part}", 0.0) for row in rows]) for rows in runs.values()
        ]
        # most runs have no reference, and drop no answers
        if part in ("reference", "dropped answers") and not any(means):
            continue
        axes[0].barh(list(runs), means, left=left, color=color, label=part)
        left += np.array(means)
    axes[0].set(xlabel="seconds per step")
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def entropy_change_plot(runs: Steps) -> Figure:
    figure, axes = _figure(1)
    for (name, rows), color in zip(runs.items(), cycle(COLORS), strict=False):
        probed = [row for row in rows if "entropy_change" in row]
        predicted, measured = (
            column(probed, "entropy_change_predicted"),
            column(probed, "entropy_change"),
        )
        axes[0].scatter(predicted, measured, color=color, label=name, s=22)
    ends = [*axes[0].get_xlim(), *axes[0].get_ylim()]
    axes[0].plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=0.8)
    axes[0].set(xlabel="predicted: gradient times step (nats)", ylabel="measured (nats)")
    axes[0].legend(frameon=False)
    return figure


def smooth(values: list[float]) -> list[float]:
    """Mean of the last SMOOTH values at each place."""
    return [float(np.mean(values[max(0, i + 1 - SMOOTH) : i + 1])) for i in range(len(values))]


def _figure(columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.2 * max(columns, 1.7), 3.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
