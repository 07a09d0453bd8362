"""One RL step's optimization: minibatches of whole sequences, one optimizer step each."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine, of_tokens, own_parts, ranks
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update.controller import Follower
from logitless.rl.update.minibatch import Packed, batch_options, old_policy, pack


class Update(NamedTuple):
    metrics: dict[str, float]  # means over the optimizer steps
    logp_gap: float  # max |trained - sampled log-prob| before the first optimizer step
    selected_tokens: int
    # [B, T] bool: tokens that the control has selected in some minibatch, not where each call does
    selected: Tensor


def update_policy(
    engine: LocalEngine,
    rollout: Rollout,
    advantages: Tensor,  # [B], or of tokens [B, T]
    spec: Any,  # PolicyLossSpec
    recipe: Recipe,
    step: int,
    clock: Stopwatch,
    follower: Follower | None = None,
    entropy_top_p: float | None = None,
) -> Update:
    """`epochs` x `minibatches` optimizer steps on one rollout; `spec` is the loss, of which
    `follower` may know a number better, with entropies within `entropy_top_p`. Fewer where the
    rollout has lost so many prompts that there is a minibatch without a sequence.

    Every rank has the whole rollout, so that a minibatch and what its loss must know of it are the
    same on all, and goes forward and backward with its own sequences of each minibatch."""
    update = recipe.update
    rng = random.Random(f"minibatches {recipe.seed} {step}")
    updates = update.epochs * update.minibatches
    sums: dict[str, float] = {}
    gap = 0.0
    selected = made = 0
    places = torch.zeros_like(rollout.mask)
    for number in range(updates):
        if number % update.minibatches == 0:
            everything = rng.sample(range(len(rollout.mask)), len(rollout.mask))
            order = torch.tensor(everything, device=rollout.mask.device)
        index = order.tensor_split(update.minibatches)[number % update.minibatches]
        if not len(index):
            continue
        minibatch = pack(rollout, advantages, index)
        now = spec if follower is None else follower.before(spec, minibatch)
        known = scored(engine, minibatch, now, recipe, clock, entropy_top_p, moved=number > 0)
        shared = batch_options(minibatch, now, recipe.seed, step * updates + number, known)
        mark_selected(places, shared)
        now = now if follower is None else follower.after(now, shared)
        own = own_parts(engine.policy, rollout, index, engine.cut())
        packed = [pack(rollout, advantages, part) if len(part) else None for part in own]
        given = (engine, packed, now, recipe, shared, clock, entropy_top_p)
        parts = ranks.each(partial(passes, *given))
        metrics = merge([metrics for part in parts for metrics in part.metrics])
        if follower is not None:
            metrics["actor/controlled"] = follower.number
        if number == 0:
            gap = max(part.logp_gap for part in parts)
        with clock("optimizer"):
            metrics["grad_norm"] = engine.step()
        selected += round(metrics.get("actor/cov_selected", 0.0) * len(minibatch.targets))
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + value
        made += 1
    return Update({key: value / made for key, value in sums.items()}, gap, selected, places)


def mark_selected(places: Tensor, shared: dict[str, Any]) -> None:
    """Sets those of `places`, [B, T], whose token ids (`pack`) a minibatch has selected."""
    if "batch" in shared:
        ids = torch.as_tensor(shared["batch"].selected, device=places.device)
        places.view(-1)[ids[ids >= 0]] = True


class Passes(NamedTuple):
    metrics: list[dict[str, float]]  # of each micro-batch
    logp_gap: float  # max |trained - sampled log-prob|


def passes(
    engine: LocalEngine,
    micro_batches: Sequence[Packed | None],
    spec: Any,
    recipe: Recipe,
    shared: dict[str, Any],
    clock: Stopwatch,
    entropy_top_p: float | None,
) -> Passes:
    """Forward and backward of some micro-batches; gradients accumulate."""
    metrics, gap = [], 0.0
    for packed in micro_batches:
        if packed is None:
            engine.idle()
            continue
        out = loss_backward(engine, packed, spec, recipe, shared, clock, entropy_top_p)
        metrics.append({key: float(value) for key, value in out.metrics.items()})
        gap = max(gap, float((out.logp - packed.old_logp).abs().max()))
    return Passes(metrics, gap)


@torch.no_grad()
def scored(
    engine: LocalEngine,
    packed: Packed,
    spec: Any,
    recipe: Recipe,
    clock: Stopwatch,
    entropy_top_p: float | None = None,
    *,
    moved: bool,
) -> dict[str, Tensor]:
    """What the batch has to know of each token under the weights of now: what its update would
    change of the entropy, or how far the policy has moved since the rollout, which has no entropies
    within `entropy_top_p`. Often nothing."""
    changes = spec.control is not None and "entropy_change" in spec.control.needs
    moves = bool(spec.surveying) and (moved or entropy_top_p is not None)
    if not (changes or moves):
        return {}

    def of(own: Rollout) -> dict[str, Tensor]:
        with clock("train body"):
            states = hidden_states(policy, own)
        with clock("train head"):
            stats = ll.linear_token_stats(
                states,
                policy.weight,
                own.targets,
                temperature=recipe.rollout.temperature,
                sampling_mask=own.kept,
                extras=("entropy_change",) if changes else (),
                entropy_top_p=entropy_top_p if moves else None,
                **policy.head_options,
            )
        found = {"entropy_change": stats.extras["entropy_change"]} if changes else {}
        return found | ({"logp": stats.logp, "entropy": stats.entropy} if moves else {})

    with engine.whole() as policy:
        found = of_tokens(policy, packed.sequences, engine.cut(), of)
    return found | ({"old_logp": packed.old_logp} if moves else {})


def loss_backward(
    engine: LocalEngine,
    packed: Packed,
    spec: Any,
    recipe: Recipe,
    shared: dict[str, Any],
    clock: Stopwatch,
    entropy_top_p: float | None = None,
) -> Any:  # LinearPolicyLossOutput
    """Forward and backward of one micro-batch; gradients accumulate. `shared`: batch_options."""

    def loss(states: Tensor, policy: Policy) -> Any:
        return ll.linear_policy_loss(
            states,
            policy.weight,
            packed.targets,
            packed.old_logp,
            packed.advantages,
            packed.mask,
            spec,
            cu_seqlens=packed.cu_seqlens,
            token_ids=packed.token_ids,
            temperature=recipe.rollout.temperature,
            sampling_mask=packed.sequences.kept,
            entropy_top_p=entropy_top_p,
            memory_budget=recipe.update.memory_budget,
            tail_mass=recipe.update.tail_mass,
            tail_entries=recipe.update.tail_entries,
            **old_policy(packed, spec),
            **shared,
            **policy.head_options,
        )

    return engine.forward_backward(packed.sequences, loss, clock)


# Metrics of micro-batches add up to the minibatch's, except these.
MERGED: dict[str, Callable[[list[float]], float]] = {
    "actor/support_bound_max": max,
    "actor/support_rows": statistics.fmean,
    "actor/support_kept": statistics.fmean,
}


def merge(parts: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of a minibatch from those of its micro-batches."""
    return {key: MERGED.get(key, sum)([part[key] for part in parts]) for key in parts[0]}
