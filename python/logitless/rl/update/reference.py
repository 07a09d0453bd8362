"""Log-probs of a rollout's tokens under the policy that a KL term compares with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch


def with_reference(
    engine: LocalEngine, rollout: Rollout, recipe: Recipe, clock: Stopwatch
) -> Rollout:
    """The rollout with `ref_logp`, where the engine has a reference."""
    if engine.reference is None:
        return rollout
    with clock("reference"), engine.reference.in_place():
        return replace(rollout, ref_logp=log_probs(engine.policy, rollout, recipe))


@torch.no_grad()
def log_probs(policy: Policy, rollout: Rollout, recipe: Recipe) -> Tensor:  # [B, T]
    """0 where nothing was sampled; in forwards of the size of the update's."""
    update = recipe.update
    logp = torch.zeros_like(rollout.logp)
    for index in torch.arange(len(logp)).tensor_split(update.minibatches * update.micro_batches):
        if not len(index):
            continue
        part = rollout.sequences(index)
        stats = ll.linear_token_stats(
            hidden_states(policy, part),
            policy.weight,
            part.targets,
            temperature=recipe.rollout.temperature,
            sampling_mask=part.kept,
            memory_budget=update.memory_budget,
            **policy.head_options,
        )
        logp[index] = logp[index].masked_scatter(part.mask, stats.logp)
    return logp
