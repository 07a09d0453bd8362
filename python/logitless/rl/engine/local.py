"""The engine of a rank that has the whole model, with weights in fp32 on one device.

Ranks have gradients of their own sequences, and an optimizer step starts with their sum, a
parameter at a time. DDP would send them during the backward, but wants each of its forwards to be
one call of a module: here the head is called beside the body, micro-batches differ in number, and a
rank may have no sequence at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitless.rl.engine import optimizer_state, ranks
from logitless.rl.engine.layers import checkpoint_layers, layers_of
from logitless.rl.engine.reference import Reference
from logitless.rl.engine.schedule import make_schedule
from logitless.rl.policy import Policy
from logitless.rl.recipe import ReferenceRecipe, UpdateRecipe
from logitless.rl.rollout import Rollout, check_cache, check_shared, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch


class LocalEngine:
    """Forward and backward, the optimizer step, and the state of both for checkpoints."""

    def __init__(
        self,
        policy: Policy,
        update: UpdateRecipe,
        # of the whole run, where the learning rates fall until its end
        steps: int = 1,
        reference: ReferenceRecipe | None = None,
    ) -> None:
        ranks.copy_first(list(policy.model.parameters()))
        self.policy = policy
        self._clip_norm = update.clip_norm
        self._optimizer = make_optimizer(policy, update)
        if update.gradient_checkpointing:
            checkpoint_layers(policy.model)
        self._schedule = make_schedule(self._optimizer, update, steps)
        self.reference = None if reference is None else Reference(policy, reference)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]

    def forward_backward(
        self, rollout: Rollout, loss: Callable[[Tensor], Any], clock: Stopwatch
    ) -> Any:
        """Gradients of `loss(hidden states).loss` are added up; returns the output of `loss`."""
        with clock("train body"):
            states = hidden_states(self.policy, rollout)
        with clock("train head"):
            # The head's backward stops here, so that its time can be told from the body's.
            leaf = states.detach().requires_grad_(states.requires_grad)
            out = loss(leaf)
            out.loss.backward()
        if states.requires_grad:
            with clock("train body"):
                states.backward(leaf.grad)
        return out

    def step(self) -> float:
        """One optimizer step on the clipped gradients of all ranks, which are then cleared; their
        norm."""
        ranks.sum_gradients(self._parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    @property
    def learning_rate(self) -> float:
        """The largest one of now."""
        return max(map(float, self._schedule.get_last_lr()))

    def advance(self) -> None:
        """The end of an RL step: the learning rates and the reference move on."""
        self._schedule.step()
        if self.reference is not None:
            self.reference.advance(self._schedule.last_epoch)

    def save(self, folder: Path) -> None:
        self.policy.save(folder)
        optimizer_state.save(self._optimizer, self._schedule, folder)
        if self.reference is not None:
            self.reference.save(folder)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, bit for bit, on any device."""
        self.policy.load_weights(folder)
        optimizer_state.load(self._optimizer, self._schedule, folder)
        if self.reference is not None:
            self.reference.load(folder)


def check_policy(policy: Policy, update: UpdateRecipe) -> None:
    """ValueError for what no engine does with this policy."""
    parts_trained(policy, update)
    check_cache(policy)
    if update.gradient_checkpointing:
        layers_of(policy.model)
    if policy.share_prompts:
        check_shared(policy)


def make_optimizer(policy: Policy, update: UpdateRecipe) -> torch.optim.Optimizer:
    """AdamW with a learning rate for body, head and embedding; rate 0 freezes."""
    groups = parts_trained(policy, update)
    policy.model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_()
    return torch.optim.AdamW(
        groups, betas=(update.beta1, update.beta2), weight_decay=update.weight_decay, fused=True
    )


def parts_trained(policy: Policy, update: UpdateRecipe) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer."""
    rates = (update.body_lr, update.head_lr, update.embedding_lr)
    parts = zip(policy.parts, rates, strict=True)
    groups = [{"params": parameters, "lr": lr} for parameters, lr in parts if parameters and lr > 0]
    if not groups:
        raise ValueError(
            "recipe keys 'update.body_lr', 'head_lr' and 'embedding_lr' leave nothing to train: "
            f"they are {rates[0]}, {rates[1]} and {rates[2]}"
        )
    return groups
