"""The picture of the study in support_study.py: shares and errors over training and on the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STYLES = {"0.01": "-", "0.001": "--"}


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    points: list[dict[str, Any]] = json.loads(path.read_text())["points"]
    return points


def plot(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    text = read(folder / "support_study_text.json")
    demo = read(folder / "support_study_demo.json")
    figure, (shares, errors, policies) = pyplot.subplots(
        1, 3, figsize=(15, 4.2), layout="constrained"
    )
    draw_shares(shares, text)
    draw_errors(errors, text)
    draw_demo(policies, demo)
    figure.savefig(folder / "support_study.png", dpi=110)
    pyplot.close(figure)


def draw_shares(axis: Any, points: list[dict[str, Any]]) -> None:
    lines = sorted({(p["text"], p["temperature"]) for p in points})
    for number, (text, temperature) in enumerate(lines):
        mine = [p for p in points if (p["text"], p["temperature"]) == (text, temperature)]
        for mass, style in STYLES.items():
            axis.plot(
                [p["step"] for p in mine],
                [100 * p["served"][f"{mass} with entropy"] for p in mine],
                style, color=f"C{number}", marker=".",
                label=f"{text}, T={temperature:g}, tail_mass={mass}",
            )  # fmt: skip
    axis.set(xlabel="training steps", ylabel="rows served sparsely, %", ylim=(-3, 103))
    axis.set_title("a small model on text", loc="left", fontsize=10)
    if points:
        axis.legend(fontsize=7)


def draw_errors(axis: Any, points: list[dict[str, Any]]) -> None:
    mine = [p for p in points if p["text"] == "training text" and p["temperature"] == 1.0]
    names = {"0.01 with entropy": "-", "0.001 with entropy": "--", "bfloat16 logits": ":"}
    for number, quantity in enumerate(("d_hidden", "d_weight")):
        for name, style in names.items():
            # 0 where no row is served, which a logarithm cannot show
            shown = [(p["step"], p["errors"][name][quantity]) for p in mine]
            shown = [(step, value) for step, value in shown if value > 0]
            if shown:
                steps, values = zip(*shown, strict=True)
                label = f"{quantity}, {name}"
                axis.plot(steps, values, style, color=f"C{number}", marker=".", label=label)
    axis.set(xlabel="training steps", ylabel="relative error", yscale="log")
    axis.set_title("the same, training text, T=1: errors above 0", loc="left", fontsize=10)
    if mine:
        axis.legend(fontsize=7)


def draw_demo(axis: Any, points: list[dict[str, Any]]) -> None:
    width = 0.38
    for number, mass in enumerate(STYLES):
        places = [i + (number - 0.5) * width for i in range(len(points))]
        served = [100 * p["served"][f"{mass} with entropy"] for p in points]
        axis.bar(places, served, width, label=f"tail_mass={mass}")
    names = [f"{p['policy']}\n{p['entropy']:.2f} nats" for p in points]
    axis.set_xticks(range(len(points)), names, fontsize=8)
    axis.set(ylabel="rows served sparsely, %", ylim=(0, 103))
    axis.set_title("the demo's policy", loc="left", fontsize=10)
    axis.legend(fontsize=7, loc="lower right", framealpha=1)
