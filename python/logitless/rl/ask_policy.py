"""Answers of a policy to one prompt, as its run asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from logitless.rl.policy import SMOLLM2_PATH, Policy, load_policy, silence_bars
from logitless.rl.recipe import ModelRecipe, Recipe, RolloutRecipe, recipe_of
from logitless.rl.rollout import sample
from logitless.rl.tracking import checkpoint, run_folder
from logitless.rl.tracking.stopwatch import Stopwatch


class Answer(NamedTuple):
    # of the whole answer, nats
    logp: float
    text: str


def ask_policy(
    folder: Path,
    prompt: str,
    *,
    answers: int,
    seed: int,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
) -> list[Answer]:
    """Answers by a model: a run's, the newest one of a method, a checkpoint, or any causal LM.

    A run's model is asked as in its rollouts: chat template, system's turn, truncation, and what is
    None here, which for other models is 16 tokens and 1.0. FileNotFoundError where there is no
    model, ValueError where the folder has several.
    """
    if str(folder) != SMOLLM2_PATH and not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder}")
    silence_bars()
    run = _recipe_of(folder)
    policy = _policy_of(folder, ModelRecipe() if run is None else run.model)
    wanted = RolloutRecipe() if run is None else run.rollout
    rollout = sample(
        policy,
        policy.encode([prompt], **wanted.template),
        group=answers,
        max_new_tokens=max_new_tokens or wanted.max_new_tokens,
        temperature=temperature or wanted.temperature,
        seed=seed,
        step=0,
        clock=Stopwatch(),
        **wanted.truncation,
    )
    special = run is not None and run.task.special_tokens
    texts = rollout.texts(policy.tokenizer, special_tokens=special)
    return [Answer(*x) for x in zip(rollout.logp.sum(dim=1).tolist(), texts, strict=True)]


def _recipe_of(folder: Path) -> Recipe | None:
    """That of the run which the folder is in: run/seed0/METHOD/checkpoint-000010."""
    above = folder.resolve()
    for place in (above, *above.parents[:3]):
        started = run_folder.recipe_in(place)
        if started is not None:
            return recipe_of(started, str(place))
    return None


def _policy_of(folder: Path, model: ModelRecipe) -> Policy:
    held = run_folder.runs_in(folder) if folder.is_dir() else []
    if len(held) > 1:
        raise ValueError(f"{folder} holds several models ({', '.join(held)}): name one of them")
    found = checkpoint.latest(folder / held[0]) if held else checkpoint.latest(folder)
    return load_policy(found or str(folder), model.draw_padding).in_dtype(model.body_dtype)
