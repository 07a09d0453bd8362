"""Did entropy change as the gradient said it would?

    predicted = <grad_theta mean H, theta_after - theta_before>,   measured = mean H after - before

both on the rows of the rollout: the first-order change, of the whole model and not of free logits.
Each rank has the rows of its own sequences, and its share of the two sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine, own_sequences, ranks
from logitless.rl.policy import Policy
from logitless.rl.rollout import Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch


class EntropyChange(NamedTuple):
    predicted: float
    measured: float


class Share(NamedTuple):
    """Of the mean entropy over the tokens of all ranks, that of this rank's."""

    loss: Tensor


class EntropyProbe:
    """Made before an update, asked after it. Costs two forwards and a backward, and a copy of the
    trained weights. Both are collective.
    """

    def __init__(self, engine: LocalEngine, rollout: Rollout, temperature: float) -> None:
        self._engine, self._own, self._temperature = engine, own_sequences(rollout), temperature
        self._tokens = int(rollout.mask.sum())
        self._entropy = sum(ranks.each(self._entropy_and_gradients))
        self._gradients = engine.take_gradients()
        self._before = [p.clone() for p in engine.own_parameters()]

    @torch.no_grad()
    def change(self) -> EntropyChange:
        moves = zip(self._gradients, self._engine.own_parameters(), self._before, strict=True)
        # Summed in fp64: a dot product of ten million fp32 terms.
        predicted = sum(float(torch.sum(g * (p - b), dtype=torch.float64)) for g, p, b in moves)
        with self._engine.whole() as policy:
            shares = ranks.each(lambda: (predicted, float(self._share_of_entropy(policy))))
        predicted, entropy = (sum(numbers) for numbers in zip(*shares, strict=True))
        return EntropyChange(predicted, entropy - self._entropy)

    def _entropy_and_gradients(self) -> float:
        if not len(self._own.mask):
            self._engine.idle()
            return 0.0
        out = self._engine.forward_backward(self._own, self._share, Stopwatch())
        return float(out.loss.detach())

    def _share_of_entropy(self, policy: Policy) -> Tensor:
        if not len(self._own.mask):
            return policy.weight.new_zeros(())
        return self._share(hidden_states(policy, self._own), policy).loss

    def _share(self, states: Tensor, policy: Policy) -> Share:
        stats: Any = ll.linear_token_stats(
            states,
            policy.weight,
            self._own.targets,
            temperature=self._temperature,
            **policy.head_options,
        )
        # What is measured is a difference of two of them.
        total: Tensor = stats.entropy.sum(dtype=torch.float64)
        return Share(total / self._tokens)
