"""The whole job of a recipe: warm-up, each method from the same start, comparison, report."""

from __future__ import annotations

import platform
import random
from pathlib import Path
from typing import Any

import torch

import logitless as ll
from logitless.rl import checkpoint, metrics, report
from logitless.rl.advantages import advantages_of
from logitless.rl.compare import compare_time
from logitless.rl.head_memory import head_memory
from logitless.rl.interrupt import StopRequest
from logitless.rl.metrics import Row, Stopwatch
from logitless.rl.model import Policy, make_policy, silence_bars
from logitless.rl.progress import Progress
from logitless.rl.recipe import Recipe, to_dict
from logitless.rl.rollout import sample
from logitless.rl.step import make_optimizer
from logitless.rl.tasks import Task, load_task
from logitless.rl.train import METRICS_FILE, make_spec, score, train
from logitless.rl.warmup import warm_up

WARMUP_FOLDER = "warmup"


def run(recipe: Recipe, out: Path, *, resume: bool = False) -> int:
    """Runs a recipe into the folder `out`; 0, or 130 where Ctrl-C ended it (the folder is usable
    all the same).
    """
    task = load_task(recipe.task)
    specs = {name: make_spec(loss) for name, loss in recipe.methods.items()}
    out.mkdir(parents=True, exist_ok=True)
    silence_bars()
    if not resume:
        forget(recipe, out)
    comparison: dict[str, Any] | None = None
    head_bytes: dict[str, int] = {}
    with Progress(recipe.steps * len(recipe.methods)) as progress, StopRequest() as stop:
        try:
            policy = starting_policy(recipe, task, out / WARMUP_FOLDER, progress, stop, resume)
            start = {name: value.clone() for name, value in policy.model.state_dict().items()}
            if recipe.compare_repeats and not stop.requested:
                progress.say("comparing one training step with full logits in plain torch")
                comparison, head_bytes = compare(policy, task, recipe, specs)
            for name in recipe.methods:
                if stop.requested:
                    break
                policy.model.load_state_dict(start)
                train(name, policy, task, recipe, out / name, progress, stop, resume)
        except KeyboardInterrupt:
            stop.requested = True
    runs = {name: metrics.read(out / name / METRICS_FILE) for name in recipe.methods}
    for line in finish(recipe, out, runs, comparison, head_bytes):
        print(line)
    return 130 if stop.requested else 0


def forget(recipe: Recipe, out: Path) -> None:
    """Removes what an earlier run of the same methods left in `out`: theirs, and nothing else."""
    checkpoint.clear(out / WARMUP_FOLDER)
    for name in recipe.methods:
        checkpoint.clear(out / name)
        (out / name / METRICS_FILE).unlink(missing_ok=True)


def starting_policy(
    recipe: Recipe, task: Task, folder: Path, progress: Progress, stop: StopRequest, resume: bool
) -> Policy:
    """The model every method starts from: read or made, warmed up where the recipe says so, kept in
    `folder`.
    """
    policy = make_policy(recipe.model, recipe.seed)
    steps = recipe.warmup.steps + recipe.warmup.full_steps
    if steps == 0:
        return policy
    saved = checkpoint.latest(folder) if resume else None
    if saved is not None:
        checkpoint.load_weights(saved, policy)
        return policy

    def report_step(step: int, loss: float) -> None:
        progress.warm(step, steps, loss)
        if stop.requested:
            raise KeyboardInterrupt

    warm_up(policy, task, recipe, report_step)
    checkpoint.save(folder, steps, policy, None)
    return policy


def compare(
    policy: Policy, task: Task, recipe: Recipe, specs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The step comparison with full logits, and each method's head memory in bytes."""
    prompts = task.prompts(random.Random(f"prompts {recipe.seed} 0"), recipe.rollout.prompts)
    rollout = sample(
        policy,
        policy.encode([p.text for p in prompts], recipe.rollout.chat_template),
        group=recipe.rollout.group,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        seed=recipe.seed,
        step=0,
        clock=Stopwatch(),
    )
    rewards = score(task, prompts, rollout.texts(policy.tokenizer), recipe.rollout.group)
    make_optimizer(policy, recipe.update)  # freezes what the recipe freezes
    cost = compare_time(policy, rollout, advantages_of(rewards, recipe.update.advantage), recipe)
    shape = (cost.rows, policy.weight.shape[1], policy.weight.shape[0])
    update = recipe.update
    head_bytes = {
        name: head_memory(spec, update.memory_budget, update.tail_mass, *shape)
        for name, spec in specs.items()
    }
    full = head_memory(None, None, 0.0, *shape)
    return {
        **cost._asdict(),
        "bytes": max(head_bytes.values()),
        "bytes_full_logits": full,
    }, head_bytes


def finish(
    recipe: Recipe,
    out: Path,
    runs: dict[str, list[Row]],
    comparison: dict[str, Any] | None,
    head_bytes: dict[str, int],
) -> list[str]:
    """Writes what there is; returns the lines a run ends with."""
    summary = report.summarize(runs, head_bytes)
    gaps = [row["logp_gap"] for rows in runs.values() for row in rows]
    details = {
        "complete": all(len(rows) == recipe.steps for rows in runs.values()),
        "comparison": comparison,
        "max_logp_gap": max(gaps) if gaps else None,
        "support_rows": report.support_rows(runs),
        "versions": {
            "logitless": ll.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "recipe": to_dict(recipe),
    }
    path = report.write(out, summary, details, runs)
    return [
        "",
        *report.text_table(summary),
        "",
        *report.comparison_lines(comparison, recipe.update.tail_mass),
        *report.support_lines(details),
        report.self_check(details),
        f"report: {path}",
    ]
