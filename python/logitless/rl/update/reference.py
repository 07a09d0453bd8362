"""Log-probs of a rollout's tokens under the policy that a KL term compares with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine, of_tokens
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch


def with_reference(
    engine: LocalEngine, rollout: Rollout, recipe: Recipe, clock: Stopwatch
) -> Rollout:
    """The rollout with `ref_logp`, where the engine has a reference. Collective."""
    if engine.reference is None:
        return rollout

    def of(part: Rollout) -> dict[str, Tensor]:
        return {"logp": log_probs(policy, part, recipe)}

    # in forwards of the size of the update's
    cut = engine.cut(recipe.update.minibatches)
    with clock("reference"), engine.reference.in_place(), engine.whole() as policy:
        logp = of_tokens(policy, rollout, cut, of)["logp"]
    none = torch.zeros_like(rollout.logp)
    return replace(rollout, ref_logp=none.masked_scatter(rollout.mask, logp))


@torch.no_grad()
def log_probs(policy: Policy, rollout: Rollout, recipe: Recipe) -> Tensor:  # [N]
    """Of the sampled tokens."""
    stats: Any = ll.linear_token_stats(
        hidden_states(policy, rollout),
        policy.weight,
        rollout.targets,
        temperature=recipe.rollout.temperature,
        sampling_mask=rollout.kept,
        memory_budget=recipe.update.memory_budget,
        **policy.head_options,
    )
    logp: Tensor = stats.logp
    return logp
