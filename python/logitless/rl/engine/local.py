"""The engine of a rank that has the whole model, with weights in fp32 on one device.

Ranks have gradients of their own sequences, and an optimizer step starts with their sum, a
parameter at a time. DDP would send them during the backward, but wants each of its forwards to be
one call of a module: here the head is called beside the body, micro-batches differ in number, and a
rank may have no sequence at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import layers, optimizer_state, ranks, shards, stored
from logitless.rl.engine.layers import checkpoint_layers, layers_of
from logitless.rl.engine.parts import make_optimizer, parts_trained
from logitless.rl.engine.reference import Reference
from logitless.rl.engine.schedule import make_schedule
from logitless.rl.policy import Policy
from logitless.rl.recipe import DistributedRecipe, ReferenceRecipe, UpdateRecipe
from logitless.rl.rollout import Cut, Rollout, check_cache, check_shared, hidden_states
from logitless.rl.tracking.divergence import first_broken
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
        self.policy = policy
        self._begin_alike()
        self._clip_norm = update.clip_norm
        self._cut = Cut(update.micro_batches, update.micro_tokens)
        self._optimizer = make_optimizer(policy, update)
        # of a method that ended amid a minibatch
        self._optimizer.zero_grad()
        if update.gradient_checkpointing:
            checkpoint_layers(policy.model)
        self._schedule = make_schedule(self._optimizer, update, steps)
        self.reference = None if reference is None else Reference(policy, reference)
        self.parameters = [p for group in self._optimizer.param_groups for p in group["params"]]

    def _begin_alike(self) -> None:
        """The first rank's weights on all."""
        ranks.copy_first(list(self.policy.model.parameters()))

    @contextmanager
    def whole(self) -> Iterator[Policy]:
        """The policy as it is now, for forwards without gradients. Collective."""
        yield self.policy

    def cut(self, minibatches: int = 1) -> Cut:
        """How the sequences of so many minibatches are cut for the body."""
        return self._cut._replace(parts=minibatches * self._cut.parts)

    def forward_backward(
        self, rollout: Rollout, loss: Callable[[Tensor, Policy], Any], clock: Stopwatch
    ) -> Any:
        """Gradients of `loss(hidden states, policy).loss` are added up, where the policy's head is
        for this call alone; returns the output of `loss`."""
        with clock("train body"), self._in_step():
            states = hidden_states(self.policy, rollout)
        with clock("train head"):
            # The head's backward stops here, so that its time can be told from the body's.
            leaf = states.detach().requires_grad_(states.requires_grad)
            out = self._head_backward(partial(loss, leaf))
        if states.requires_grad:
            with clock("train body"), self._in_step():
                states.backward(leaf.grad)
        return out

    def _in_step(self) -> AbstractContextManager[None]:
        """Around what the body does."""
        return nullcontext()

    def _head_backward(self, loss: Callable[[Policy], Any]) -> Any:
        out = loss(self.policy)
        out.loss.backward()
        return out

    def idle(self) -> None:
        """What a rank does that has no sequence of a micro-batch."""

    def step(self) -> float:
        """One optimizer step on the clipped gradients of all ranks, which are then cleared; their
        norm. Collective."""
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(ll.gathered(norm))

    def take_gradients(self) -> list[Tensor]:
        """This rank's part of those of `parameters` so far, which are then cleared: of its own
        sequences, or of its own share of the parameters. Collective."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self._optimizer.zero_grad()
        return [shards.own(gradient) for gradient in found]

    def own_parameters(self) -> list[Tensor]:
        """This rank's part of `parameters` as they are now: all of them, or its own share."""
        return [shards.own(p.detach()) for p in self.parameters]

    def _sum_gradients(self) -> None:
        ranks.sum_gradients(self.parameters)

    def broken(self) -> str | None:
        """`first_broken` of all parameters. Collective."""
        return first_broken(self.policy.model.named_parameters())

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
        """All that `load` reads; with the tokenizer beside it `load_policy` reads the policy.
        Collective."""
        self._save_policy(folder)
        optimizer_state.save(self._optimizer, self._schedule, folder)
        if self.reference is not None:
            self.reference.save(folder)

    def _save_policy(self, folder: Path) -> None:
        ranks.first(partial(self.policy.save_weights, folder))

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, bit for bit, on any device and any number of ranks."""
        weights = self.policy.weights_as_saved()
        if weights is None:
            shards.restore(self.policy, self.policy.read_weights(folder))
        else:
            place = folder / self.policy.saved_as
            stored.read(stored.find(place), weights, place)
        optimizer_state.load(self._optimizer, self._schedule, folder)
        if self.reference is not None:
            self.reference.load(folder)


def check_policy(
    policy: Policy, update: UpdateRecipe, distributed: DistributedRecipe | None = None
) -> None:
    """ValueError for what no engine does with this policy."""
    parts_trained(policy, update)
    check_cache(policy)
    if update.gradient_checkpointing:
        layers_of(policy.model, layers.KEY)
    if distributed is not None and distributed.shard:
        layers_of(policy.model, shards.KEY)
    if policy.share_prompts:
        check_shared(policy)
