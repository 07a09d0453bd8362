"""What a run needs before its first step: made, and checked, before anything is written."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from logitless.rl.answers import task_of
from logitless.rl.engine import check_policy, claim_device, ranks
from logitless.rl.evaluation import held_out
from logitless.rl.policy import Policy, make_policy, silence_bars
from logitless.rl.recipe import Recipe, make_spec, of_seeds, recipe_of
from logitless.rl.rollout import Server
from logitless.rl.tasks import Task, TaskWithSolutions
from logitless.rl.tasks.judges import Rewarded
from logitless.rl.tasks.prompt_file import PromptFile
from logitless.rl.tracking import run_folder, trackers
from logitless.rl.update import advantage_name, check_steps, follower_of

# Of the difference of a token's log-probs in a rollout and in training, where the body computes in
# bfloat16: up to 0.009 in 30 layers of width 576.
ROUNDING = 0.01
# How many of a file's longest prompts, by their characters, are made tokens of at the start.
LONGEST = 64


class Prepared(NamedTuple):
    task: Task
    # of each method
    specs: dict[str, Any]
    advantages: dict[str, str]
    # as it was read or made, without a warm-up; of the first seed, where there are several
    policy: Policy


def prepare(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> Prepared:
    """All that a recipe, or the folder `out` of its run, can have wrong is an error here."""
    claim_device(recipe.model.device)
    check_ranks(recipe)
    trackers.check_installed(recipe.log_to)
    if recipe.rollout.server is not None:
        Server(recipe.rollout.server).check(masks=bool(recipe.rollout.truncation))
    # rewards may have models as well
    silence_bars()
    task = task_of(recipe)
    asked = [task, held_out(recipe, task)] if recipe.evaluation.every else [task]
    longest = recipe.rollout.max_new_tokens
    specs = {name: make_spec(name, loss, longest) for name, loss in recipe.methods.items()}
    advantages = {name: advantage_name(recipe, name) for name in recipe.methods}
    for name, loss in recipe.methods.items():
        follower_of(name, specs[name], loss.controller)
        check_steps(recipe, name, advantages[name], specs[name])
    kind = recipe.reference.kind
    if kind != "frozen" and not any("ref_logp" in spec.needs for spec in specs.values()):
        raise ValueError(
            f"recipe key 'reference.kind' is {kind}, and no method compares with a reference: "
            "methods.NAME.change={kl: {coefficient: 0.01}} does"
        )
    if recipe.model.body_dtype == "bfloat16":
        check_clips(specs)
    if recipe.warmup.any_steps:
        with_solutions(task)
    run_folder.check(
        out, asdict(recipe), fixed(recipe), resume=resume, overwrite=overwrite, completed=completed
    )
    first, *_ = of_seeds(recipe).values()
    policy = make_policy(first.model, first.seed, first.lora)
    check_template(policy, recipe, asked)
    # a template that is missing, or has no system's turn, is refused here
    policy.encode(["a prompt"], **recipe.rollout.template)
    check_lengths(policy, recipe, asked)
    check_policy(policy, recipe.update, recipe.distributed)
    return Prepared(task, specs, advantages, policy)


def completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recipe of an earlier version with the keys that it did not have, at their defaults; as it
    is where it has keys that are no more."""
    try:
        return asdict(recipe_of(deepcopy(recorded), "of the run"))
    except ValueError:
        return recorded


def check_ranks(recipe: Recipe) -> None:
    """ValueError for what several ranks do not do."""
    ranks.check_prompts("rollout.prompts", recipe.rollout.prompts)
    if recipe.evaluation.every:
        ranks.check_prompts("evaluation.prompts", recipe.evaluation.prompts)
    if ranks.alone():
        return
    if recipe.compare_repeats:
        raise ValueError(
            f"recipe key 'compare_repeats' must be 0 with {ranks.count()} ranks: a comparison has "
            f"the machine for itself; got {recipe.compare_repeats}"
        )


def check_template(policy: Policy, recipe: Recipe, tasks: Sequence[Task | PromptFile]) -> None:
    """ValueError where a prompt needs a chat template and the tokenizer has none."""
    if policy.tokenizer.chat_template is not None:
        return
    if recipe.rollout.chat_template:
        raise ValueError(
            "recipe key 'rollout.chat_template' must be false with a tokenizer that has no chat "
            "template, got true"
        )
    prompts = prompts_of_files(tasks)
    messages = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    if messages is not None:
        raise ValueError(
            "prompts must be texts with a tokenizer that has no chat template, got the messages "
            f"{str(messages)[:80]}"
        )


def check_lengths(policy: Policy, recipe: Recipe, tasks: Sequence[Task | PromptFile]) -> None:
    """ValueError where a file has a prompt too long for the model, as far as a few tell; others are
    looked at before they are answered."""
    longest = heapq.nlargest(LONGEST, prompts_of_files(tasks), key=lambda prompt: len(str(prompt)))
    ids = policy.encode(longest or ["1"], **recipe.rollout.template)
    policy.check_length(ids, recipe.rollout.max_new_tokens)


def prompts_of_files(tasks: Sequence[Task | PromptFile]) -> list[Any]:
    asked = (task.task if isinstance(task, Rewarded) else task for task in tasks)
    return [row["prompt"] for task in asked if isinstance(task, PromptFile) for row in task.rows]


def check_clips(specs: dict[str, Any]) -> None:
    """ValueError for a loss that would clip by rounding."""
    for name, spec in specs.items():
        bounds = [getattr(spec.surrogate, side, None) for side in ("low", "high")]
        finest = min((bound for bound in bounds if bound is not None), default=ROUNDING)
        if finest < ROUNDING:
            raise ValueError(
                f"recipe key 'model.body_dtype' must be float32 with methods.{name}: its clip of "
                f"{finest:g} is finer than what bfloat16 makes of a log-prob, {ROUNDING}; got "
                "bfloat16"
            )


def with_solutions(task: Task) -> TaskWithSolutions:
    """The task, as a warm-up needs it."""
    if isinstance(task, TaskWithSolutions):
        return task
    own = task.task if isinstance(task, Rewarded) else task
    of_what = "a file of prompts" if isinstance(own, PromptFile) else type(own).__name__
    raise ValueError(
        f"warmup needs a task with solution(rng, prompt), and {of_what} has none: "
        "set warmup.steps=0 and warmup.full_steps=0"
    )


def fixed(recipe: Recipe) -> list[str]:
    """Keys that a resumed run may not change, though other recipes may."""
    # the rates of the steps that are done would have been others with another last step
    return ["steps"] if recipe.update.falls_until_the_end else []
