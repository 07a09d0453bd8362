"""The engine of ranks that have a share of the model each.

All ranks go forward and backward equally often, since each time they gather the layers together;
what a rank can fail at in between, the head and the loss, all have done before one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import ranks, shards, stored
from logitless.rl.engine.local import LocalEngine
from logitless.rl.policy import Policy
from logitless.rl.recipe import ReferenceRecipe, UpdateRecipe
from logitless.rl.rollout import Rollout
from logitless.rl.tracking.divergence import first_broken
from logitless.rl.tracking.stopwatch import Stopwatch


class Gathered(NamedTuple):
    """A parameter of the head for the micro-batches of a minibatch."""

    # its gradient goes to the shares
    whole: Tensor
    # where the gradient of this rank's sequences is added up
    leaf: Tensor


class ShardedEngine(LocalEngine):
    """Of a policy that `shards.spread` has made."""

    _head: dict[str, Gathered] | None = None

    def _begin_alike(self) -> None:
        """They are since the model is spread."""

    @contextmanager
    def whole(self) -> Iterator[Policy]:
        with shards.gathered(self.policy) as policy:
            yield policy

    def forward_backward(
        self, rollout: Rollout, loss: Callable[[Tensor, Policy], Any], clock: Stopwatch
    ) -> Any:
        self._gather_head()
        return super().forward_backward(rollout, loss, clock)

    def _in_step(self) -> AbstractContextManager[None]:
        return ranks.in_step()

    def _head_backward(self, loss: Callable[[Policy], Any]) -> Any:
        head = {name: part.leaf for name, part in self._gather_head().items()}

        def of_own() -> Any:
            out = loss(shards.with_head(self.policy, head))
            out.loss.backward()
            return out

        # an error of one rank's numbers is one of all
        return ranks.together(of_own)

    def idle(self) -> None:
        """A backward that adds nothing, of a token: the others need this rank's layers."""
        self._gather_head()
        one = torch.zeros(1, 1, dtype=torch.long, device=self.policy.device)
        with ranks.in_step():
            states = self.policy.states(one, one == 0)
        ranks.together(lambda: None)
        if states.requires_grad:
            with ranks.in_step():
                states.backward(torch.zeros_like(states))

    def _gather_head(self) -> dict[str, Gathered]:
        if self._head is None:
            self._head = {}
            for name, parameter in shards.head_parameters(self.policy).items():
                whole = ll.gathered(parameter, reduce="sum")
                leaf = whole.detach().requires_grad_(whole.requires_grad)
                self._head[name] = Gathered(whole, leaf)
        return self._head

    def take_gradients(self) -> list[Tensor]:
        self._sum_gradients()
        return super().take_gradients()

    def _sum_gradients(self) -> None:
        """The body's have been summed by each backward."""
        for whole, leaf in (self._head or {}).values():
            if whole.requires_grad:
                whole.backward(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        self._head = None

    def broken(self) -> str | None:
        named = self.policy.model.named_parameters()
        own = ((name, shards.own(p)) for name, p in named)
        found = ranks.each(partial(first_broken, own))
        return next((what for what in found if what is not None), None)

    def _save_policy(self, folder: Path) -> None:
        weights = self.policy.weights_as_saved()
        if weights is None:
            with self.whole() as policy:
                whole = shards.state_of(policy.model)
                ranks.first(partial(policy.save_weights, folder, whole))
            return
        # the files beside the weights, and of these none
        ranks.first(partial(self.policy.save_weights, folder, {}))
        stored.write_joined(weights, folder / f"{self.policy.saved_as}{stored.SUFFIX}")


def make_engine(
    policy: Policy, update: UpdateRecipe, steps: int, reference: ReferenceRecipe | None
) -> LocalEngine:
    kind = ShardedEngine if shards.is_spread(policy.model) else LocalEngine
    return kind(policy, update, steps, reference)
