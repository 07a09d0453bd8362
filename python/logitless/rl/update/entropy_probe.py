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
from logitless.rl.engine import own_sequences, ranks
from logitless.rl.policy import Policy
from logitless.rl.rollout import Rollout, hidden_states


class EntropyChange(NamedTuple):
    predicted: float
    measured: float


class EntropyProbe:
    """Made before an update, asked after it. Costs two forwards and a backward, and a copy of the
    trained weights. Both are collective.
    """

    def __init__(self, policy: Policy, rollout: Rollout, temperature: float) -> None:
        self._policy, self._own, self._temperature = policy, own_sequences(rollout), temperature
        self._tokens = int(rollout.mask.sum())
        self._parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._before = [p.detach().clone() for p in self._parameters]
        self._entropy = sum(ranks.each(self._entropy_and_gradients))

    @torch.no_grad()
    def change(self) -> EntropyChange:
        moves = zip(self._gradients, self._parameters, self._before, strict=True)
        # Summed in fp64: a dot product of ten million fp32 terms.
        predicted = sum(float(torch.sum(g * (p - b), dtype=torch.float64)) for g, p, b in moves)
        shares = ranks.each(lambda: (predicted, float(self._share_of_entropy())))
        predicted, entropy = (sum(numbers) for numbers in zip(*shares, strict=True))
        return EntropyChange(predicted, entropy - self._entropy)

    def _entropy_and_gradients(self) -> float:
        entropy = self._share_of_entropy()
        if entropy.requires_grad:
            self._gradients = list(torch.autograd.grad(entropy, self._parameters))
        return float(entropy.detach())

    def _share_of_entropy(self) -> Tensor:
        """Of the mean over the tokens of all ranks."""
        if not len(self._own.mask):
            return self._policy.weight.new_zeros(())
        stats: Any = ll.linear_token_stats(
            hidden_states(self._policy, self._own),
            self._policy.weight,
            self._own.targets,
            temperature=self._temperature,
            **self._policy.head_options,
        )
        # What is measured is a difference of two of them.
        total: Tensor = stats.entropy.sum(dtype=torch.float64)
        return total / self._tokens
