"""The whole job of a recipe: warm-up, each method from the same start, comparison, report; with
several seeds all that once a seed, but for the comparison and the report."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from logitless.rl.demo.compare import compare
from logitless.rl.demo.prepare import Prepared, completed, fixed, prepare, with_solutions
from logitless.rl.demo.reports import finish
from logitless.rl.engine import ranks, spread, take
from logitless.rl.experience import TooFewGroups, ask
from logitless.rl.policy import Policy, make_policy
from logitless.rl.recipe import WARMUP, Recipe, of_seeds
from logitless.rl.tasks import Task, of_user
from logitless.rl.tracking import checkpoint, run_folder, trackers
from logitless.rl.tracking.divergence import Diverged
from logitless.rl.tracking.interrupt import Stopped, StopRequest
from logitless.rl.tracking.log import Log
from logitless.rl.tracking.progress import Progress
from logitless.rl.train import train
from logitless.rl.update import warm_up


def run(recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False) -> int:
    """Runs a recipe into the folder `out`; returns 0, or 128 + the number of the signal that ended
    it: 130 for Ctrl-C, 143 for SIGTERM; 1 where a method has diverged or cannot fill a batch. The
    folder is usable in every case.

    `resume` goes on with the run that the folder holds, `overwrite` deletes it.
    """
    how = {"resume": resume, "overwrite": overwrite}
    try:
        with ranks.joined(), ExitStack() as held:
            prepared = ranks.together(partial(prepare, recipe, out, **how))

            def claim() -> None:
                held.enter_context(run_folder.locked(out))
                run_folder.claim(out, asdict(recipe), fixed(recipe), **how, completed=completed)

            ranks.first(claim)
            return _run(recipe, prepared, out, resume)
    except ranks.OtherRank as error:
        # one that has not been killed says itself what is wrong
        if error.lost:
            sys.stderr.write(f"logitless: {error}\n")
        return 1


def _run(recipe: Recipe, prepared: Prepared, out: Path, resume: bool) -> int:
    task, policy = prepared.task, prepared.policy
    comparison: dict[str, Any] | None = None
    head_bytes: Mapping[str, int | None] = {}
    diverged, seeds = False, of_seeds(recipe)
    total = len(seeds) * len(recipe.methods) * recipe.steps
    mute = not ranks.is_first()
    with Progress(total, mute=mute) as progress, StopRequest(ranks.largest) as stop:
        try:
            for number, (name, one) in enumerate(seeds.items()):
                if stop.check():
                    break
                # whole, also where the policy is spread by now
                fresh = make_policy(one.model, one.seed, one.lora) if number else policy
                with place_of(out, name, one, progress, resume) as folder:
                    warmed_up(fresh, one, task, folder / WARMUP, progress, stop, resume)
                    if number:
                        take(policy, fresh)
                    elif recipe.distributed.shard and not ranks.alone():
                        policy = spread(policy, recipe.update)
                    del fresh
                    start = policy.snapshot()
                    if recipe.compare_repeats and not number and not stop.requested:
                        progress.say("comparing one training step with full logits in plain torch")
                        comparison, head_bytes = compare(policy, task, one, prepared.specs)
                    for method in one.methods:
                        policy.restore(start)
                        if method == list(one.methods)[-1]:
                            # no other method starts from this second copy of the weights
                            start.clear()
                        log = log_of(one, out, Path(name, method))
                        diverged |= _train(method, policy, task, one, log, progress, stop, resume)
        except Stopped:
            pass
        except KeyboardInterrupt:
            # the second signal has no time for what other ranks are at
            if not ranks.alone():
                raise
            stop.end_now()

    def end() -> None:
        lines = finish(recipe, out, comparison, head_bytes)
        if stop.requested:
            lines.append(f"stopped before its end; --resume --out {out} goes on")
        print(*lines, sep="\n", flush=True)

    ranks.first(end)
    return stop.status or int(diverged)


def _train(
    method: str,
    policy: Policy,
    task: Task,
    recipe: Recipe,
    log: Log,
    progress: Progress,
    stop: StopRequest,
    resume: bool,
) -> bool:
    """Whether the method has ended by itself; nothing is done after a request to stop."""
    if not stop.check():
        try:
            with closing(log):
                train(method, policy, task, recipe, log, progress, stop, resume)
        except Diverged as error:
            progress.say(str(error))
            return True
        except TooFewGroups as error:
            progress.say(f"method '{method}' ends before {error}")
            return True
    return False


def log_of(recipe: Recipe, out: Path, place: Path) -> Log:
    """Of the method whose folder is `place` inside of the run's."""
    group = out.resolve().name
    run = trackers.Run(recipe.log_project, group, Path(group, place).as_posix(), asdict(recipe))
    return Log(out / place, run, recipe.log_to)


@contextmanager
def place_of(out: Path, name: str, one: Recipe, progress: Progress, resume: bool) -> Iterator[Path]:
    """The folder of one seed, `name` inside of the run's: as that of a run with this seed alone."""
    folder = out / name
    if folder == out:
        yield out
        return
    progress.say(f"seed {one.seed}, in {folder}")
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(run_folder.locked(folder))
            run_folder.record(folder, asdict(one), resume=resume)

        ranks.first(claim)
        yield folder


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
    if not steps:
        return
    read = partial(checkpoint.resume, folder, policy.load_weights, progress.say)
    if resume and ranks.same(read):
        return
    task = with_solutions(task)
    rng = random.Random(f"warm-up {recipe.seed}")
    prompts = ask(task, rng, recipe.warmup.examples)
    with of_user("solution(rng, prompt) of the task"):
        answers = [task.solution(rng, prompt) for prompt in prompts]

    def report_step(step: int, loss: float) -> None:
        progress.warm(step, steps, loss)
        if stop.check():
            raise Stopped

    warm_up(policy, [prompt.text for prompt in prompts], answers, recipe, report_step)
    ranks.first(partial(checkpoint.save, folder, steps, policy.save))
