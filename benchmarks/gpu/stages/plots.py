"""The stage `plots`: headline and head as `./dev bench` draws them, and rates over sizes."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases.registry import BY_NAME
from benchmarks.gpu.stage_process import Work
from benchmarks.gpu.store import Store
from benchmarks.harness import plots
from benchmarks.harness.case import Case
from benchmarks.harness.comparison import Comparison, Measured
from benchmarks.harness.timing import Times

# Stage -> its picture.
PICTURES = {"headline": "headline.png", "others": "others.png"}
SIZES = "sizes.png"
ROWS = 8192


def comparison_of(fields: Mapping[str, Any]) -> Comparison:
    """What Comparison.as_json made into fields."""
    measured = tuple(
        Measured(
            m["name"], m["kind"], Times(tuple(t / 1e3 for t in m["runs_ms"])), m["errors"],
            m["peak_bytes"],
        )
        for m in fields["measured"]
    )  # fmt: skip
    return Comparison(BY_NAME[fields["op"]], Case(**fields["setting"]), measured, fields["skipped"])


def timed(store: Store, *stages: str) -> list[dict[str, Any]]:
    return [c for stage in stages for c in store.cases(stage).values() if c.get("measured")]


def draw_sizes(found: list[dict[str, Any]], path: Path) -> None:
    """GB/s of the necessary bytes over the vocabulary, a panel for each op and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], dict[str, list[tuple[int, float]]]]
    panels = defaultdict(lambda: defaultdict(list))
    kinds = {}
    for case in found:
        at = case["setting"]
        if at["rows"] == ROWS and BY_NAME[case["op"]].sizes:
            for m in case["measured"]:
                rate = m["bytes_per_second"] / 1e9
                panels[case["op"], at["dtype"]][m["name"]].append((at["vocab"], rate))
                kinds[m["name"]] = m["kind"]
    if not panels:
        return
    width = 2
    height = -(-len(panels) // width)
    figure, axes = pyplot.subplots(
        height, width, figsize=(15, 4.5 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((op, dtype), lines) in zip(axes.flat, sorted(panels.items()), strict=False):
        for name, points in sorted(lines.items()):
            style = "--" if kinds[name] == "floor" else "-"
            axis.plot(*zip(*sorted(points), strict=True), style, marker="o", label=name)
        axis.set_title(f"{op}, {dtype}, {ROWS} rows", loc="left", fontsize=10)
        axis.set_xlabel("vocabulary")
        axis.set_ylabel("GB/s of the necessary bytes")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run(work: Work) -> None:
    def picture(stage: str, name: str) -> dict[str, Any]:
        found = [comparison_of(case) for case in timed(work.store, stage)]
        if found:
            plots.plot(found, work.out / name)
        return {"file": name if found else None}

    def sizes() -> dict[str, Any]:
        draw_sizes(timed(work.store, "headline", "sizes"), work.out / SIZES)
        return {"file": SIZES}

    # What was drawn before is drawn again: there may be more to draw.
    work.store.set_stage(work.stage.name, cases={})
    pictures = [(n, functools.partial(picture, s, n)) for s, n in PICTURES.items()]
    work.each([*pictures, (SIZES, sizes)])
