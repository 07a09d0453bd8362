"""The report of a run, written into its folder, and that of several runs side by side."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

import logitless as ll
from logitless.rl.recipe import Recipe, of_seeds, recipe_of
from logitless.rl.report import summary as numbers
from logitless.rl.report import text
from logitless.rl.report.summary import Runs
from logitless.rl.tracking import completions, metrics, run_folder
from logitless.rl.tracking.metrics import Row


class Found(NamedTuple):
    """What a run has left so far."""

    summary: dict[str, Any]
    details: dict[str, Any]
    runs: Runs
    answers: dict[str, list[Row]]


def report(folders: Sequence[Path], out: Path) -> list[str]:
    """Writes the report of a run anew, as far as it has come: one that goes on, was killed, or is
    done; or that of several runs, into `out`. Returns its lines."""
    found = {folder: found_again(folder) for folder in folders}
    if len(found) == 1:
        ((folder, only),) = found.items()
        return written(folder, only)
    if run_folder.recipe_in(out) is not None:
        raise ValueError(f"the report of several runs needs a folder of its own, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    return written(out, merged(dict(zip(labels_of(list(found)), found.values(), strict=True))))


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The ends of their paths, as short as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        labels = ["/".join(path[-length:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def finish(
    recipe: Recipe,
    out: Path,
    comparison: dict[str, Any] | None,
    head_bytes: Mapping[str, int | None],
) -> list[str]:
    """Writes the report of the steps so far; returns the lines that a run ends with."""
    return written(out, found_in(recipe, out, comparison, head_bytes))


def written(out: Path, found: Found) -> list[str]:
    # Here, so that jinja2 loads after the peak memory of the run was measured.
    from logitless.rl.report import page

    path = page.write(out, *found)
    tables = [text.aligned(table) for table in text.tables(found.summary, found.details) if table]
    return [
        "",
        *(line for table in tables for line in (*table, "")),
        *text.comparisons(found.details),
        *text.checks(found.details),
        f"report: {path}",
    ]


def found_again(out: Path) -> Found:
    """With what only the run itself could measure, from its last report."""
    from logitless.rl.report import page

    started = run_folder.recipe_in(out)
    if started is None:
        raise FileNotFoundError(f"{out} is no folder of a run")
    summary, details = page.read(out)
    head_bytes = {name: row["head_memory_bytes"] for name, row in summary.items()}
    recipe = recipe_of(started, str(out))
    return found_in(recipe, out, details.get("comparison"), head_bytes)


def found_in(
    recipe: Recipe,
    out: Path,
    comparison: dict[str, Any] | None,
    head_bytes: Mapping[str, int | None],
) -> Found:
    seeds = {one.seed: out / name for name, one in of_seeds(recipe).items()}
    runs, evaluations = (
        {
            method: {seed: metrics.read(folder / method / file) for seed, folder in seeds.items()}
            for method in recipe.methods
        }
        for file in (metrics.FILE, metrics.EVALUATION_FILE)
    )
    done = [rows for by_seed in runs.values() for rows in by_seed.values()]
    gaps = [row["logp_gap"] for rows in done for row in rows]
    rewards = numbers.rewards_of(
        row["reward"]
        for method in recipe.methods
        for folder in seeds.values()
        for row in metrics.read(folder / method / completions.FILE)
        if row["reward"] is not None
    )
    largest = numbers.largest_of(rewards)
    details = {
        "complete": all(len(rows) == recipe.steps for rows in done),
        "comparison": comparison,
        "max_logp_gap": max(gaps) if gaps else None,
        "support_rows": numbers.support_rows(runs),
        "versions": {
            "logitless": ll.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "evaluations": {name: numbers.mean(rows) for name, rows in evaluations.items()},
        "rewards": rewards,
        "spread": numbers.spread(runs, evaluations, largest),
        "starts": run_folder.starts_in(out),
        "recipe": asdict(recipe),
    }
    first, *_ = seeds.values()
    answers = {name: rows for name in recipe.methods if (rows := completions.shown(first / name))}
    return Found(numbers.summarize(runs, head_bytes, largest), details, runs, answers)


def merged(found: Mapping[str, Found]) -> Found:
    """Several runs as one, whose methods have the run's label before their names."""

    def labelled(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{run}/{name}": x for run, part in parts.items() for name, x in part.items()}

    details = {run: one.details for run, one in found.items()}
    return Found(
        labelled({run: one.summary for run, one in found.items()}),
        {
            "complete": all(one["complete"] for one in details.values()),
            "evaluations": labelled({run: one["evaluations"] for run, one in details.items()}),
            "spread": labelled({run: one["spread"] for run, one in details.items()}),
            "runs": details,
        },
        labelled({run: one.runs for run, one in found.items()}),
        labelled({run: one.answers for run, one in found.items()}),
    )
