"""The arrays of a model's head as they are now: engines and peft replace them between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.transformers.layer import head_layer


def head_arrays(model: Any, vocab: int, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, gathered where FSDP2 shards them, cut to `vocab` rows, and in the dtype of
    hidden where autocast does not choose one."""
    layer = head_layer(model)
    weight, bias = ll.gathered(layer.weight), getattr(layer, "bias", None)
    bias = None if bias is None else ll.gathered(bias)
    if vocab < len(weight):
        weight, bias = weight[:vocab], None if bias is None else bias[:vocab]
    if not torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(hidden.dtype)
        bias = None if bias is None else bias.to(hidden.dtype)
    return weight, bias


def refuse_adapter(model: Any) -> None:
    """A new adapter adds nothing yet, so that no measurement finds it."""
    layer = head_layer(model)
    if hasattr(layer, "base_layer"):
        raise ValueError(
            f"{type(model).__name__}: its head has an adapter, {type(layer).__name__}, which would "
            "not be trained: leave it out of target_modules"
        )
