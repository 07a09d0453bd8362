"""Did entropy change as the gradient said it would?

    predicted = <grad_theta mean H, theta_after - theta_before>,   measured = mean H after - before

both on the rows of the rollout: the first-order change, of the whole model and not of free logits.
Each rank has the rows of its own sequences, and its share of the two sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine, own_parts, ranks
from logitless.rl.policy import Policy
from logitless.rl.rollout import Cut, Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch

# Numbers of a tensor that are cast to fp64 at once.
PIECE = 1 << 22


class EntropyChange(NamedTuple):
    predicted: float
    measured: float


class Share(NamedTuple):
    """Of the mean entropy over the tokens of all ranks, that of this rank's."""

    loss: Tensor


class EntropyProbe:
    """Made before an update, asked after it. Costs two forwards and a backward, of a part of the
    rollout after the other, and a gradient's memory. Both are collective.
    """

    def __init__(self, engine: LocalEngine, rollout: Rollout, temperature: float, cut: Cut) -> None:
        self._engine, self._temperature = engine, temperature
        everything = torch.arange(len(rollout.mask), device=rollout.mask.device)
        own = own_parts(engine.policy, rollout, everything, cut)
        self._parts = [rollout.sequences(part) for part in own]
        self._tokens = int(rollout.mask.sum())
        self._entropy = sum(ranks.each(self._entropy_and_gradients))
        self._gradients = engine.take_gradients()
        self._before = self._along_gradient()

    @torch.no_grad()
    def change(self) -> EntropyChange:
        predicted = self._along_gradient() - self._before
        with self._engine.whole() as policy:
            shares = ranks.each(lambda: (predicted, self._share_of_entropy(policy)))
        predicted, entropy = (sum(numbers) for numbers in zip(*shares, strict=True))
        return EntropyChange(predicted, entropy - self._entropy)

    @torch.no_grad()
    def _along_gradient(self) -> float:
        """<gradient, this rank's weights>, in fp64: what an update adds to it is a difference of
        two, of which no weight has to be kept."""
        total = 0.0
        for g, p in zip(self._gradients, self._engine.own_parameters(), strict=True):
            pieces = zip(g.reshape(-1).split(PIECE), p.reshape(-1).split(PIECE), strict=True)
            total += float(sum(a.double() @ b.double() for a, b in pieces))
        return total

    def _entropy_and_gradients(self) -> float:
        total = 0.0
        for own in self._parts:
            if not len(own.mask):
                self._engine.idle()
                continue
            share = partial(self._share, own.targets)
            out = self._engine.forward_backward(own, share, Stopwatch())
            total += float(out.loss.detach())
        return total

    def _share_of_entropy(self, policy: Policy) -> float:
        return sum(
            float(self._share(own.targets, hidden_states(policy, own), policy).loss)
            for own in self._parts
            if len(own.mask)
        )

    def _share(self, targets: Tensor, states: Tensor, policy: Policy) -> Share:
        stats: Any = ll.linear_token_stats(
            states,
            policy.weight,
            targets,
            temperature=self._temperature,
            **policy.head_options,
        )
        # What is measured is a difference of two of them.
        total: Tensor = stats.entropy.sum(dtype=torch.float64)
        return Share(total / self._tokens)
