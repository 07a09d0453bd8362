"""The loss with full logits in plain torch, which the library is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def full_logits_loss(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N]
    old_logp: Tensor,  # [N]
    advantages: Tensor,  # [N]
    temperature: float,
    bias: Tensor | None = None,  # [V]
    softcap: float | None = None,
    logit_scale: float = 1.0,
    adapter: Sequence[tuple[Tensor, Tensor, float]] = (),  # A [r, H], B [V, r], scale
) -> Tensor:
    """PPO's clipped loss the plain way (clip 0.2, token mean), with the entropy trainers log."""
    logits = hidden @ weight.T
    for down, up, scale in adapter:
        logits = logits + scale * (hidden @ down.T @ up.T)
    if bias is not None:
        logits = logits + bias
    if logit_scale != 1:
        logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp_all = torch.log_softmax(logits / temperature, dim=-1)
    logp = logp_all.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        -(logp_all.exp() * logp_all).sum(dim=-1).mean()
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
