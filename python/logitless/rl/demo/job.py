"""The whole job of a recipe: warm-up, each method from the same start, comparison, report."""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import logitless as ll
from logitless.rl.demo.compare import compare
from logitless.rl.demo.prepare import Prepared, fixed, prepare, with_solutions
from logitless.rl.policy import Policy
from logitless.rl.recipe import WARMUP, Recipe, recipe_of
from logitless.rl.report import summary as numbers
from logitless.rl.report import text
from logitless.rl.tasks import Task
from logitless.rl.tracking import checkpoint, completions, metrics, run_folder
from logitless.rl.tracking.divergence import Diverged
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.progress import Progress
from logitless.rl.train import train
from logitless.rl.update import warm_up


def run(recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False) -> int:
    """Runs a recipe into the folder `out`; returns 0, or 128 + the number of the signal that ended
    it: 130 for Ctrl-C, 143 for SIGTERM; 1 where a method has diverged. The folder is usable in
    every case.

    `resume` goes on with the run that the folder holds, `overwrite` deletes it.
    """
    prepared = prepare(recipe, out, resume=resume, overwrite=overwrite)
    with run_folder.locked(out):
        keys = fixed(recipe)
        run_folder.claim(out, asdict(recipe), keys, resume=resume, overwrite=overwrite)
        return _run(recipe, prepared, out, resume)


def _run(recipe: Recipe, prepared: Prepared, out: Path, resume: bool) -> int:
    task, policy = prepared.task, prepared.policy
    comparison: dict[str, Any] | None = None
    head_bytes: Mapping[str, int | None] = {}
    diverged = False
    with Progress(recipe.steps * len(recipe.methods)) as progress, StopRequest() as stop:
        try:
            warmed_up(policy, recipe, task, out / WARMUP, progress, stop, resume)
            start = policy.snapshot()
            if recipe.compare_repeats and not stop.requested:
                progress.say("comparing one training step with full logits in plain torch")
                comparison, head_bytes = compare(policy, task, recipe, prepared.specs)
            for name in recipe.methods:
                if stop.requested:
                    break
                policy.restore(start)
                try:
                    train(name, policy, task, recipe, out / name, progress, stop, resume)
                except Diverged as error:
                    progress.say(str(error))
                    diverged = True
        except KeyboardInterrupt:
            stop.requested, stop.status = True, stop.status or 130
    for line in finish(recipe, out, comparison, head_bytes):
        print(line)
    if stop.requested:
        print(f"stopped before its end; --resume --out {out} goes on")
    return stop.status or int(diverged)


def warmed_up(
    policy: Policy,
    recipe: Recipe,
    task: Task,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
    resume: bool,
) -> None:
    """Makes of `policy` what every method starts from, and saves that in `folder`; where the recipe
    has no warm-up it stays as it is."""
    steps = recipe.warmup.steps + recipe.warmup.full_steps
    if not steps or (resume and checkpoint.resume(folder, policy.load_weights, progress.say)):
        return
    task = with_solutions(task)
    rng = random.Random(f"warm-up {recipe.seed}")
    prompts = task.prompts(rng, recipe.warmup.examples)
    answers = [task.solution(rng, prompt) for prompt in prompts]

    def report_step(step: int, loss: float) -> None:
        progress.warm(step, steps, loss)
        if stop.requested:
            raise KeyboardInterrupt

    warm_up(policy, [prompt.text for prompt in prompts], answers, recipe, report_step)
    checkpoint.save(folder, steps, policy.save)


def report(out: Path) -> list[str]:
    """Writes the report of the folder's run anew, as far as it has come: one that goes on, was
    killed, or is done. Returns its lines."""
    from logitless.rl.report import page

    started = run_folder.recipe_in(out)
    if started is None:
        raise FileNotFoundError(f"{out} is no folder of a run")
    summary, details = page.read(out)
    head_bytes = {name: row["head_memory_bytes"] for name, row in summary.items()}
    return finish(recipe_of(started, str(out)), out, details.get("comparison"), head_bytes)


def finish(
    recipe: Recipe,
    out: Path,
    comparison: dict[str, Any] | None,
    head_bytes: Mapping[str, int | None],
) -> list[str]:
    """Writes the report of the steps so far; returns the lines that a run ends with."""
    # Here, so that matplotlib loads after the peak memory of the run was measured.
    from logitless.rl.report import page

    runs, evaluations = (
        {name: metrics.read(out / name / file) for name in recipe.methods}
        for file in (metrics.FILE, metrics.EVALUATION_FILE)
    )
    summary = numbers.summarize(runs, head_bytes)
    gaps = [row["logp_gap"] for rows in runs.values() for row in rows]
    details = {
        "complete": all(len(rows) == recipe.steps for rows in runs.values()),
        "comparison": comparison,
        "max_logp_gap": max(gaps) if gaps else None,
        "support_rows": numbers.support_rows(runs),
        "versions": {
            "logitless": ll.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "evaluations": evaluations,
        "recipe": asdict(recipe),
    }
    answers = {name: shown for name in recipe.methods if (shown := completions.shown(out / name))}
    evaluated = text.aligned(text.evaluation_table(evaluations))
    path = page.write(out, summary, details, runs, answers)
    return [
        "",
        *text.aligned(text.table(summary)),
        "",
        *([*evaluated, ""] if evaluated else []),
        *text.comparison_lines(comparison, recipe.update.tail_mass),
        *text.support_lines(details),
        text.self_check(details),
        f"report: {path}",
    ]
