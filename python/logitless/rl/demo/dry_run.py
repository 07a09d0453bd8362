"""What a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from logitless.rl.demo.prepare import Prepared, prepare
from logitless.rl.engine import parts_trained, ranks
from logitless.rl.policy import Policy
from logitless.rl.recipe import WARMUP, Recipe, UpdateRecipe, as_yaml, of_seeds
from logitless.rl.tracking import checkpoint, run_folder


def dry_run(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> list[str]:
    """The recipe with all its values, and what `run` would make of it; nothing is written.

    Whatever `run` refuses before its first step is refused here: the model is read, too.
    """
    how = {"resume": resume, "overwrite": overwrite}
    with ranks.joined():
        try:
            prepared = ranks.together(partial(prepare, recipe, out, **how))
        except ranks.OtherRank:
            return []
        if not ranks.is_first():
            return []
    return [
        *as_yaml(recipe).splitlines(),
        "",
        f"folder     {folder(out, resume)}",
        f"model      {model(prepared.policy, recipe.update)}",
        f"each step  {each_step(recipe)}",
        *methods(recipe, prepared, out, resume),
        "nothing was written",
    ]


def folder(out: Path, resume: bool) -> str:
    held = ", ".join(run_folder.runs_in(out))
    if not held:
        return f"{out}, a new run"
    return f"{out}, " + (
        f"which goes on with {held}" if resume else f"of which {held} is deleted first"
    )


def model(policy: Policy, update: UpdateRecipe) -> str:
    trained = sum(p.numel() for part in parts_trained(policy, update) for p in part["params"])
    everything = sum(p.numel() for p in policy.model.parameters())
    rows, width = policy.weight.shape
    return (
        f"{type(policy.model).__name__}, {everything:,} parameters, of which {trained:,} are "
        f"trained; a head of {rows} x {width}"
    )


def each_step(recipe: Recipe) -> str:
    rollout, update = recipe.rollout, recipe.update
    answers = rollout.prompts * rollout.group
    size = answers / update.minibatches
    micro = f"{size / update.micro_batches:g}"
    if update.micro_tokens:
        micro = f"up to {update.micro_tokens} tokens"
    rounds = ""
    if rollout.filter_groups:
        rounds = f" from up to {rollout.max_rounds} rounds of {rollout.prompts_at_once} prompts"
    return (
        f"{rollout.prompts} prompts{rounds} x {rollout.group} answers = {answers} of up to "
        f"{rollout.max_new_tokens} tokens; {update.epochs * update.minibatches} optimizer steps on "
        f"{size:g} answers each, in micro-batches of {micro}"
    )


def methods(recipe: Recipe, prepared: Prepared, out: Path, resume: bool) -> Iterator[str]:
    for folder, one in of_seeds(recipe).items():
        if recipe.seeds:
            yield f"seed       {one.seed}, in {out / folder}"
        yield from methods_of(one, prepared, out / folder, resume)


def methods_of(recipe: Recipe, prepared: Prepared, out: Path, resume: bool) -> Iterator[str]:
    """Of one seed."""
    warmup = recipe.warmup
    if warmup.any_steps:
        done = resume and checkpoint.latest(out / WARMUP) is not None
        steps = f"{warmup.steps} + {warmup.full_steps} supervised steps"
        yield f"warm-up    {'done' if done else steps}"
    for name, spec in prepared.specs.items():
        saved = checkpoint.latest(out / name) if resume else None
        start = 0 if saved is None else checkpoint.step_of(saved)
        steps = "done" if start >= recipe.steps else f"steps {start + 1} to {recipe.steps}"
        yield f"method     {name}: {steps}; advantage {prepared.advantages[name]}; {spec}"
