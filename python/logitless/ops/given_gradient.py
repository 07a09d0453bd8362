"""A scalar whose gradients are already known: the torch side of a loss in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.ops.library import register


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, g_logp, _, g_entropy = inputs
    ctx.save_for_backward(g_logp, g_entropy)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # the coefficients are constants to autograd: a derivative of them would be silently 0
    if torch.is_grad_enabled():
        raise RuntimeError("policy_loss: double backward (create_graph=True) is not supported")
    g_logp, g_entropy = ctx.saved_tensors
    return None, g_logp * grad, None, None if g_entropy is None else g_entropy * grad, None


# `loss` itself, with the gradients g_logp and g_entropy.
given_gradient = register(
    "given_gradient(Tensor loss, Tensor logp, Tensor g_logp, Tensor? entropy, Tensor? g_entropy)"
    " -> Tensor",
    lambda loss, *_: loss.clone(),
    lambda loss, *_: torch.empty_like(loss),
    setup=_setup,
    backward=_backward,
)
