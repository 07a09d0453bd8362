"""A scalar whose gradients are already known: the torch side of a loss in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,  # []
        logp: Tensor,
        g_logp: Tensor,
        entropy: Tensor | None,
        g_entropy: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(g_logp, g_entropy)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g_logp, g_entropy = ctx.saved_tensors
        return None, g_logp * grad, None, None if g_entropy is None else g_entropy * grad, None


def given_gradient(
    loss: Tensor,  # []
    logp: Tensor,
    g_logp: Tensor,
    entropy: Tensor | None,
    g_entropy: Tensor | None,
) -> Tensor:
    """`loss` with the gradients g_logp and g_entropy; the second derivative raises."""
    apply: Any = _GivenGradient.apply
    out: Tensor = apply(loss, logp, g_logp, entropy, g_entropy)
    return out
