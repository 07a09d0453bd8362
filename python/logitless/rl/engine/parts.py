"""Which parameters of a policy an optimizer has."""

from __future__ import annotations

from typing import Any

import torch

from logitless.rl.policy import Policy
from logitless.rl.recipe import UpdateRecipe


def make_optimizer(policy: Policy, update: UpdateRecipe) -> torch.optim.Optimizer:
    """AdamW with a learning rate for body, head and embedding; rate 0 freezes."""
    groups = freeze_others(policy, update)
    return torch.optim.AdamW(
        groups, betas=(update.beta1, update.beta2), weight_decay=update.weight_decay, fused=True
    )


def freeze_others(policy: Policy, update: UpdateRecipe) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer; what is in none has no gradients any more."""
    groups = parts_trained(policy, update)
    policy.model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_()
    return groups


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
