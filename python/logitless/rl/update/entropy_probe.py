"""Did entropy change as the gradient said it would?

    predicted = <grad_theta mean H, theta_after - theta_before>,   measured = mean H after - before

both on the rows of the rollout: the first-order change, of the whole model and not of free logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import Policy
from logitless.rl.rollout import Rollout, hidden_states


class EntropyChange(NamedTuple):
    predicted: float
    measured: float


class EntropyProbe:
    """Made before an update, asked after it. Costs two forwards and a backward, and a copy of the
    trained weights.
    """

    def __init__(self, policy: Policy, rollout: Rollout, temperature: float) -> None:
        self._policy, self._rollout, self._temperature = policy, rollout, temperature
        self._parameters = [p for p in policy.model.parameters() if p.requires_grad]
        entropy = self._mean_entropy()
        self._gradients = torch.autograd.grad(entropy, self._parameters)
        self._before = [p.detach().clone() for p in self._parameters]
        self._entropy = float(entropy.detach())

    @torch.no_grad()
    def change(self) -> EntropyChange:
        moves = zip(self._gradients, self._parameters, self._before, strict=True)
        # Summed in fp64: a dot product of ten million fp32 terms.
        predicted = sum(float(torch.sum(g * (p - b), dtype=torch.float64)) for g, p, b in moves)
        return EntropyChange(predicted, float(self._mean_entropy()) - self._entropy)

    def _mean_entropy(self) -> Tensor:
        stats: Any = ll.linear_token_stats(
            hidden_states(self._policy, self._rollout),
            self._policy.weight,
            self._rollout.targets,
            temperature=self._temperature,
            **self._policy.head_options,
        )
        mean: Tensor = stats.entropy.mean()
        return mean
