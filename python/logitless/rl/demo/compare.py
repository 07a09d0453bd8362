"""The same training step with full logits in plain torch: its time and memory beside ours.

Both run on one minibatch in this process, forward and backward of body and head, by turns; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.demo.full_logits import full_logits_loss
from logitless.rl.demo.head_memory import head_memory
from logitless.rl.engine import LocalEngine
from logitless.rl.experience import collect
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.tasks import Task
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import batch_options, loss_backward, pack


class StepCost(NamedTuple):
    rows: int
    vocab_size: int
    seconds: float
    seconds_exact: float | None  # with tail_mass = 0, where the recipe has one
    seconds_full_logits: float
    loss_difference: float  # |ours - full logits|, on the same minibatch


def compare(
    policy: Policy, task: Task, recipe: Recipe, specs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The step comparison with full logits, and each method's head memory in bytes."""
    recipe = replace(recipe, rollout=recipe.rollout.unfiltered())
    experience = collect(policy, task, recipe, "group_std", 0, Stopwatch())
    # plain torch would need a mask of all logits for the tokens that were left to draw from
    rollout = replace(experience.rollout, kept=None)
    engine = LocalEngine(policy, recipe.update)
    cost = compare_time(engine, rollout, experience.advantages, recipe)
    shape = (cost.rows, policy.weight.shape[1], policy.weight.shape[0])
    update = recipe.update
    head_bytes = {
        name: head_memory(
            spec, update.memory_budget, update.tail_mass, recipe.methods[name].entropy_top_p, *shape
        )
        for name, spec in specs.items()
    }
    full = head_memory(None, None, 0.0, None, *shape)
    sizes = {"bytes": max(head_bytes.values()), "bytes_full_logits": full}
    return {**cost._asdict(), **sizes}, head_bytes


def compare_time(
    engine: LocalEngine, rollout: Rollout, advantages: Tensor, recipe: Recipe
) -> StepCost:
    """Medians of `compare_repeats` steps of either kind on the rollout's first minibatch; no
    optimizer step.
    """
    spec, policy = ll.presets["ppo"], engine.policy
    everything = torch.arange(len(rollout.mask), device=rollout.mask.device)
    index = everything.tensor_split(recipe.update.minibatches)[0]
    minibatch = pack(rollout, advantages, index)
    shared = batch_options(minibatch, spec, recipe.seed, 0)

    def ours(recipe: Recipe) -> float:
        out = loss_backward(engine, minibatch, spec, recipe, shared, Stopwatch())
        return float(out.loss.detach())

    def full_logits() -> float:
        loss = full_logits_loss(
            hidden_states(policy, minibatch.sequences),
            policy.weight,
            minibatch.targets,
            minibatch.old_logp,
            minibatch.advantages,
            recipe.rollout.temperature,
            **policy.head_options,
        )
        loss.backward()
        return float(loss.detach())

    def timed(step: Callable[[], float]) -> tuple[float, float]:
        policy.model.zero_grad()
        start = time.perf_counter()
        loss = step()
        return time.perf_counter() - start, loss

    steps: dict[str, Callable[[], float]] = {"ours": partial(ours, recipe), "full": full_logits}
    if recipe.update.tail_mass:
        steps["exact"] = partial(ours, replace(recipe, update=replace(recipe.update, tail_mass=0)))
    for step in steps.values():
        timed(step)
    rounds = [
        {name: timed(step) for name, step in steps.items()} for _ in range(recipe.compare_repeats)
    ]
    policy.model.zero_grad()
    seconds = {name: statistics.median(times[name][0] for times in rounds) for name in steps}
    return StepCost(
        rows=len(minibatch.targets),
        vocab_size=len(policy.weight),
        seconds=seconds["ours"],
        seconds_exact=seconds.get("exact"),
        seconds_full_logits=seconds["full"],
        loss_difference=max(abs(times["ours"][1] - times["full"][1]) for times in rounds),
    )
