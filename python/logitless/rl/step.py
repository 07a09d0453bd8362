"""One RL step's optimization: minibatches of whole sequences, one optimizer step each."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.metrics import Stopwatch
from logitless.rl.model import Policy
from logitless.rl.recipe import Recipe, UpdateRecipe
from logitless.rl.rollout import Rollout, hidden_states


class Update(NamedTuple):
    metrics: dict[str, float]  # means over the optimizer steps
    logp_gap: float  # max |trained - sampled log-prob| before the first optimizer step
    selected_tokens: int


class Packed(NamedTuple):
    """Sequences as rows: what every loss function of the library takes."""

    targets: Tensor  # [N] int64
    old_logp: Tensor  # [N]
    old_entropy: Tensor  # [N]
    advantages: Tensor  # [N]
    mask: Tensor  # [N] bool: all true, since only sampled tokens are packed
    cu_seqlens: Tensor  # [B + 1] int32
    token_ids: Tensor  # [N] int64


def make_optimizer(policy: Policy, update: UpdateRecipe) -> torch.optim.Optimizer:
    """AdamW with a learning rate for body, head and embedding; rate 0 freezes."""
    head, embedding = policy.weight, policy.embedding
    apart = {id(head), id(embedding)}
    body = [p for p in policy.model.parameters() if id(p) not in apart]
    parts = [(body, update.body_lr), ([head], update.head_lr)]
    if not policy.tied:
        parts.append(([embedding], update.embedding_lr))
    for parameters, lr in parts:
        for parameter in parameters:
            parameter.requires_grad_(lr > 0)
    groups = [{"params": parameters, "lr": lr} for parameters, lr in parts if lr > 0]
    if not groups:
        raise ValueError("update.body_lr, head_lr and embedding_lr are all 0: nothing to train")
    return torch.optim.AdamW(
        groups, betas=(update.beta1, update.beta2), weight_decay=update.weight_decay, fused=True
    )


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,  # [B]
    spec: Any,  # PolicyLossSpec
    recipe: Recipe,
    step: int,
    clock: Stopwatch,
) -> Update:
    """`epochs` x `minibatches` optimizer steps on one rollout; `spec` is the loss."""
    update = recipe.update
    rng = random.Random(f"minibatches {recipe.seed} {step}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    updates = update.epochs * update.minibatches
    sums: dict[str, float] = {}
    gap = 0.0
    selected = 0
    for number in range(updates):
        if number % update.minibatches == 0:
            order = torch.tensor(rng.sample(range(len(rollout.mask)), len(rollout.mask)))
        index = order.tensor_split(update.minibatches)[number % update.minibatches]
        minibatch = pack(rollout, advantages, index)
        shared = batch_options(minibatch, spec, recipe.seed, step * updates + number)
        parts = []
        for part in index.tensor_split(update.micro_batches):
            out = loss_backward(policy, rollout, advantages, part, spec, recipe, shared, clock)
            parts.append({key: float(value) for key, value in out.metrics.items()})
            if number == 0:
                packed = pack(rollout, advantages, part)
                gap = max(gap, float((out.logp - packed.old_logp).abs().max()))
        metrics = merge(parts)
        with clock("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(parameters, update.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        metrics["grad_norm"] = float(norm)
        selected += round(metrics.get("actor/cov_selected", 0.0) * len(minibatch.targets))
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + value
    return Update({key: value / updates for key, value in sums.items()}, gap, selected)


# Metrics of micro-batches add up to the minibatch's, but for these.
MERGED: dict[str, Callable[[list[float]], float]] = {
    "actor/support_bound_max": max,
    "actor/support_rows": statistics.fmean,
    "actor/support_kept": statistics.fmean,
}


def merge(parts: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of a minibatch from those of its micro-batches."""
    return {key: MERGED.get(key, sum)([part[key] for part in parts]) for key in parts[0]}


def loss_backward(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,  # [B]
    index: Tensor,  # the sequences of this micro-batch
    spec: Any,
    recipe: Recipe,
    shared: dict[str, Any],
    clock: Stopwatch,
) -> Any:  # LinearPolicyLossOutput
    """Forward and backward of some sequences; gradients accumulate."""
    packed = pack(rollout, advantages, index)
    with clock("train body"):
        states = hidden_states(policy, rollout.sequences(index))
    with clock("train head"):
        # The head's backward stops here, so that its time can be told from the body's.
        leaf = states.detach().requires_grad_(states.requires_grad)
        out = ll.linear_policy_loss(
            leaf,
            policy.weight,
            packed.targets,
            packed.old_logp,
            packed.advantages,
            packed.mask,
            spec,
            cu_seqlens=packed.cu_seqlens,
            token_ids=packed.token_ids,
            temperature=recipe.rollout.temperature,
            memory_budget=recipe.update.memory_budget,
            tail_mass=recipe.update.tail_mass,
            **shared,
            **policy.head_options,
        )
        out.loss.backward()
    if states.requires_grad:
        with clock("train body"):
            states.backward(leaf.grad)
    return out


def pack(rollout: Rollout, advantages: Tensor, index: Tensor) -> Packed:
    part = rollout.sequences(index)
    mask, lengths = part.mask, part.lengths
    ends = lengths.cumsum(0).int()
    sequence, position = mask.nonzero(as_tuple=True)
    return Packed(
        targets=part.targets,
        old_logp=part.logp[mask],
        old_entropy=part.entropy[mask],
        advantages=advantages[index].repeat_interleave(lengths),
        mask=torch.ones(len(sequence), dtype=torch.bool),
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]),
        token_ids=ll.token_ids(index[sequence], position, mask.shape[1]),
    )


def batch_options(minibatch: Packed, spec: Any, seed: int, step: int) -> dict[str, Any]:
    """What makes micro-batches add up to the minibatch: its counts, and its selection where the
    loss selects.
    """
    if spec.control is None:
        sequences = len(minibatch.cu_seqlens) - 1
        return {"totals": ll.Totals(tokens=len(minibatch.targets), sequences=sequences)}
    batch = ll.batch_stats(
        minibatch.old_logp,
        minibatch.advantages,
        minibatch.mask,
        spec,
        entropy=minibatch.old_entropy,
        cu_seqlens=minibatch.cu_seqlens,
        token_ids=minibatch.token_ids,
        seed=seed,
        step=step,
    )
    return {"batch": batch}
