"""What a micro-batch of TRL's says to a policy loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import logitless as ll


def valid(inputs: dict[str, Any]) -> Tensor:  # [B, T] bool
    """Tokens of completions that the policy made itself."""
    mask: Tensor = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    return mask.bool()


def per_token(x: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, 1] as [B, T]."""
    return (x[:, None] if x.dim() == 1 else x).expand_as(mask)


def rollout_logp(inputs: dict[str, Any]) -> Tensor | None:
    """As the inference engine reported; one that it could not score counts as the policy's own."""
    sampled: Tensor | None = inputs.get("sampling_per_token_logps")
    old = inputs.get("old_per_token_logps")
    if sampled is None or old is None:
        return sampled
    return torch.where(sampled.isnan(), old, sampled)


def loss_arrays(spec: ll.PolicyLossSpec, inputs: dict[str, Any], mask: Tensor) -> dict[str, Any]:
    """Arguments of linear_policy_loss, [B, T], [B, 1] or [B]."""
    old, weights = inputs.get("old_per_token_logps"), inputs.get("importance_sampling_ratio")
    if weights is not None and isinstance(spec.surrogate, ll.Vespo):
        # Its own weight is of the sequence's ratio, rollout included.
        old = old - weights.log().clamp(math.log(1e-8), 20.0)
        weights = None
    if spec.correction is not None or spec.ratio == "inference":
        # It looks at the rollout itself.
        weights = None
    return {
        "old_logp": old,
        "advantages": inputs["advantages"],
        "mask": mask,
        "ref_logp": inputs.get("ref_per_token_logps") if "ref_logp" in spec.needs else None,
        "rollout_logp": rollout_logp(inputs) if "rollout_logp" in spec.needs else None,
        "weights": weights,
    }
