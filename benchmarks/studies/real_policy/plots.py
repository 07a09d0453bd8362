"""The pictures of docs/real_policy.md: one of each setting."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.studies.real_policy.numbers import (
    LARGEST_REWARD,
    Methods,
    law,
    smooth,
    trained,
)
from benchmarks.studies.real_policy.setting import VARIANTS

matplotlib.use("Agg")

from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too; the untrained model is grey.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
FIRST = "sums"


def draw(settings: dict[str, Methods], picture: Path) -> list[Path]:
    """`picture` is that of the first setting; the others have their name in it."""
    paths = []
    for name, methods in settings.items():
        own = picture if name == FIRST else picture.with_stem(f"{picture.stem}_{name}")
        figure(methods).savefig(own, dpi=100)
        paths.append(own)
    return paths


def figure(methods: Methods) -> Figure:
    methods = {name: runs for name, runs in methods.items() if name not in VARIANTS}
    made = Figure(figsize=(17, 7.6), layout="constrained")
    axes = made.subplots(2, 4).flatten()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    runs = trained(methods)
    colors = dict(zip(runs, cycle(COLORS), strict=False))
    (reward, entropy, distinct, passed, laws, change, chosen, served) = axes
    curve(reward, runs, colors, "reward", "reward: share of right answers")
    curve(entropy, runs, colors, "entropy", "entropy, nats per token")
    curve(distinct, runs, colors, "distinct_right_answers", "distinct right answers of 8")
    pass_at_k(passed, methods, colors)
    law_points(laws, runs, colors)
    entropy_change(change, runs, colors)
    curve(chosen, runs, colors, "actor/cov_selected", "share of tokens that the control selects")
    curve(
        served, runs, colors, "actor/support_rows", "share of rows served by their largest entries"
    )
    handles, names = reward.get_legend_handles_labels()
    made.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return made


def curve(axis: Any, runs: Methods, colors: dict[str, str], key: str, title: str) -> None:
    """The mean of the seeds' smoothed curves, and a band from the smallest to the largest; nothing
    where no run has this number."""
    if not any(key in run["curves"] for of_method in runs.values() for run in of_method):
        axis.set_visible(False)
        return
    for name, of_method in runs.items():
        curves = [smooth(run["curves"][key]) for run in of_method if key in run["curves"]]
        if not curves:
            continue
        steps = min(map(len, curves))
        values = np.array([values[:steps] for values in curves])
        x = np.arange(1, steps + 1)
        axis.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=colors[name], alpha=0.15, linewidth=0
        )
        axis.plot(x, values.mean(axis=0), color=colors[name], label=name, linewidth=2)
    axis.set(xlabel="step")
    axis.set_title(title, loc="left", fontsize=11)


def pass_at_k(axis: Any, methods: Methods, colors: dict[str, str]) -> None:
    for name, runs in methods.items():
        keys = [key for key in runs[0]["evaluation"] if key.startswith("pass@")]
        values = np.array([[run["evaluation"][key] for key in keys] for run in runs])
        axis.plot(
            [int(key[5:]) for key in keys], values.mean(axis=0), marker="o", markersize=4,
            color=colors.get(name, "#999999"), linestyle="-" if name in colors else "--",
            label=None if name in colors else name,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set(xlabel="k")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_title("pass@k after training", loc="left", fontsize=11)
    if len(methods) > len(colors):
        axis.legend(frameon=False)


def law_points(axis: Any, runs: Methods, colors: dict[str, str]) -> None:
    """A point a step of every seed; a line where a seed's law has a ceiling that can be one."""
    for name, of_method in runs.items():
        for run in of_method:
            x, y = np.exp(run["curves"]["entropy"]), run["curves"]["reward"]
            axis.scatter(x, y, color=colors[name], s=12, alpha=0.45, linewidth=0)
            found = law(run)
            if found.ceiling <= LARGEST_REWARD:
                grid = np.linspace(1.0, x.max(), 50)
                axis.plot(grid, found.b - found.a * grid, color=colors[name], linewidth=1)
    axis.set(xlabel="exp(entropy)", ylim=(-0.03, 1.05))
    axis.set_title("reward against exp(entropy), and the law", loc="left", fontsize=11)


def entropy_change(axis: Any, runs: Methods, colors: dict[str, str]) -> None:
    ends = [0.0]
    for name, of_method in runs.items():
        for run in of_method:
            probed = run["entropy_change"]
            x, y = probed["entropy_change_predicted"], probed["entropy_change"]
            axis.scatter(x, y, color=colors[name], s=16, alpha=0.7, linewidth=0)
            ends += [*x, *y]
    axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=0.8)
    axis.set(xlabel="predicted by the gradient, nats", ylabel="measured, nats")
    axis.set_title("entropy change of a step", loc="left", fontsize=11)
