"""What a body's layers keep between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

KEY = "update.gradient_checkpointing"


def checkpoint_layers(model: Any) -> None:
    """The layers forget what is inside of them, and run again in the backward.

    transformers' own switch does so in training mode alone, where dropout would make other
    log-probs than those of the rollout.
    """
    for layer in layers_of(model, KEY):
        # each method of a run has its engine, and all have one model
        if not hasattr(layer.forward, "runs_again"):
            layer.forward = running_again(layer.forward)


def layers_of(model: Any, key: str) -> list[Any]:
    """ValueError, with the recipe's key that needs them, where transformers names none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"recipe key '{key}' must be false for {type(model).__name__}: transformers names no "
            "layers of it"
        )
    return layers


def running_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        return checkpoint(forward, *args, use_reentrant=False, **options)

    run.runs_again = True  # type: ignore[attr-defined]
    return run
