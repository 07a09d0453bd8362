"""A picture of a run: times left, accuracy against speed right, a row per comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.comparison import Comparison, Measured
from benchmarks.harness.report import title

COLORS = {"ours": "#1f6feb", "torch": "#8b949e", "peer": "#d29922", "floor": "#2da44e"}
# Errors of zero have no place on a log axis.
SMALLEST_ERROR = 1e-9
ROW_INCHES = 2.9


def plot(comparisons: Sequence[Comparison], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import lines, pyplot

    figure, axes = pyplot.subplots(
        len(comparisons),
        2,
        figsize=(15, ROW_INCHES * len(comparisons)),
        squeeze=False,
        layout="constrained",
    )
    for comparison, (left, right) in zip(comparisons, axes, strict=True):
        draw_times(left, comparison)
        draw_accuracy(right, comparison)
    handles = [lines.Line2D([], [], marker="o", ls="", color=c) for c in COLORS.values()]
    figure.legend(handles, COLORS, loc="outside upper center", ncols=len(COLORS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_times(axis: Any, comparison: Comparison) -> None:
    """Medians as points, the range of the runs as whiskers, fastest at the top."""
    ordered = ranked(comparison)
    for place, m in enumerate(ordered):
        low, middle, high = (1e3 * t for t in (m.times.low, m.times.median, m.times.high))
        axis.plot([low, high], [place, place], color=COLORS[m.kind], lw=2, alpha=0.5)
        axis.plot([middle], [place], "o", color=COLORS[m.kind])
        note = f"{middle:.3g} ms, {m.times.over(comparison.floor.times):.3g}x"
        write(axis, note, (high, place), (6, -3))
    names = [f"{m.name}  {number}" for number, m in enumerate(ordered, 1)]
    axis.set_yticks(range(len(ordered)), names, fontsize=8)
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    log_axis(axis, [1e3 * t for m in ordered for t in m.times.runs], room=4.0)
    axis.set_title(title(comparison), fontsize=9, loc="left")
    axis.set_xlabel("milliseconds; x: times the floor", fontsize=8)


def draw_accuracy(axis: Any, comparison: Comparison) -> None:
    """Down and to the left is better. Points bear the numbers of the left panel, above and below by
    turns; the dotted line is the floor's time."""
    judged = [(number, m) for number, m in enumerate(ranked(comparison), 1) if m.errors]
    for place, (number, m) in enumerate(judged):
        point = (1e3 * m.times.median, worst(m))
        axis.plot(*([x] for x in point), "o", color=COLORS[m.kind])
        write(axis, str(number), point, (-3, 6 if place % 2 else -13))
    axis.axvline(1e3 * comparison.floor.times.median, color=COLORS["floor"], ls=":")
    axis.set_yscale("log")
    if judged:
        errors = [worst(m) for _, m in judged]
        axis.set_ylim(min(errors) / 5, max(errors) * 5)
    log_axis(axis, [1e3 * m.times.median for m in comparison.measured], room=1.3)
    axis.set_title("largest error against float64", fontsize=9, loc="left")
    axis.set_xlabel("milliseconds", fontsize=8)


def ranked(comparison: Comparison) -> list[Measured]:
    return sorted(comparison.measured, key=lambda m: m.times.median)


def write(axis: Any, text: str, point: tuple[float, float], points_off: tuple[int, int]) -> None:
    axis.annotate(text, point, xytext=points_off, textcoords="offset points", fontsize=8)


def worst(m: Measured) -> float:
    return max(*m.errors.values(), SMALLEST_ERROR)


def log_axis(axis: Any, values: Sequence[float], room: float) -> None:
    """A log scale over `values` with room for the labels on the right."""
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 1.3, max(values) * room)
    axis.xaxis.set_major_formatter("{x:g}")
    # Between powers of ten only where few of them fit.
    minor = "{x:g}" if max(values) < 30 * min(values) else ""
    axis.xaxis.set_minor_formatter(lambda x, _: minor.format(x=x) if f"{x:e}"[0] in "25" else "")
    axis.tick_params(labelsize=8, which="both")
    axis.grid(axis="x", alpha=0.3)
