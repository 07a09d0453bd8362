"""The same training step with full logits in plain torch: its time beside ours.

Both run on one minibatch in this process, forward and backward of body and head, by turns; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.rl.metrics import Stopwatch
from logitless.rl.model import Policy
from logitless.rl.recipe import LossRecipe, Recipe
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.step import batch_options, loss_backward, pack


class StepCost(NamedTuple):
    rows: int
    vocab_size: int
    seconds: float
    seconds_exact: float | None  # with tail_mass = 0, where the recipe has one
    seconds_full_logits: float
    loss_difference: float  # |ours - full logits|, on the same minibatch


def full_logits_loss(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N]
    old_logp: Tensor,  # [N]
    advantages: Tensor,  # [N]
    temperature: float,
) -> Tensor:
    """PPO's clipped loss the plain way (clip 0.2, token mean), with the entropy trainers log."""
    logp_all = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    logp = logp_all.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        -(logp_all.exp() * logp_all).sum(dim=-1).mean()
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()


def compare_time(policy: Policy, rollout: Rollout, advantages: Tensor, recipe: Recipe) -> StepCost:
    """Medians of `compare_repeats` steps of either kind on the rollout's first minibatch; needs no
    update.
    """
    from logitless.rl.train import make_spec

    spec = make_spec(LossRecipe("ppo"))
    index = torch.arange(len(rollout.mask)).tensor_split(recipe.update.minibatches)[0]
    minibatch = pack(rollout, advantages, index)
    shared = batch_options(minibatch, spec, recipe.seed, 0)

    def head(recipe: Recipe) -> float:
        out = loss_backward(policy, rollout, advantages, index, spec, recipe, shared, Stopwatch())
        return float(out.loss.detach())

    def full_logits() -> float:
        loss = full_logits_loss(
            hidden_states(policy, rollout.sequences(index)),
            policy.weight,
            minibatch.targets,
            minibatch.old_logp,
            minibatch.advantages,
            recipe.rollout.temperature,
        )
        loss.backward()
        return float(loss.detach())

    def timed(step: Callable[[], float]) -> tuple[float, float]:
        policy.model.zero_grad()
        start = time.perf_counter()
        loss = step()
        return time.perf_counter() - start, loss

    steps: dict[str, Callable[[], float]] = {"ours": partial(head, recipe), "full": full_logits}
    if recipe.update.tail_mass:
        steps["exact"] = partial(head, replace(recipe, update=replace(recipe.update, tail_mass=0)))
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
