"""The arrays of a model's head as they are now: engines and peft replace them between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.transformers.adapter import Adapter, adapters_of
from logitless.integrations.transformers.layer import head_layer


def head_arrays(model: Any, vocab: int, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Weight, and as options bias and adapter; gathered where FSDP2 shards them, cut to `vocab`
    rows, and weight and bias in the dtype of hidden where autocast does not choose one."""
    layer = head_layer(model)
    weight, bias = ll.gathered(layer.weight), getattr(layer, "bias", None)
    bias = None if bias is None else ll.gathered(bias)
    if vocab < len(weight):
        weight, bias = weight[:vocab], None if bias is None else bias[:vocab]
    if not torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(hidden.dtype)
        bias = None if bias is None else bias.to(hidden.dtype)
    options: dict[str, Any] = {"bias": bias}
    lora = _adapters(model, layer)
    if lora:
        options["adapter"] = [
            (ll.gathered(A), ll.gathered(B)[:vocab], scale) for A, B, scale in lora
        ]
    return weight, options


def has_adapter(model: Any) -> bool:
    """Whether its head has one. Raises ValueError for a kind that the head ops do not know."""
    return bool(_adapters(model, head_layer(model)))


def _adapters(model: Any, layer: Any) -> list[Adapter]:
    try:
        return adapters_of(layer)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__}: {error}") from error
