"""Where a model's last product is, and what goes into it and comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Modules around a model that have it as `.module`.
_WRAPPERS = ("DistributedDataParallel", "DataParallel")


def unwrapped(model: Any) -> Any:
    """The Hugging Face model inside torch.compile, DDP and peft; FSDP2 adds no module."""
    inner = model
    while True:
        kinds = {kind.__name__ for kind in type(inner).__mro__}
        if "FullyShardedDataParallel" in kinds:
            raise TypeError(
                "FullyShardedDataParallel keeps a head's weight in a flat one, which cannot be "
                "used alone: shard the model with torch.distributed.fsdp.fully_shard"
            )
        if "OptimizedModule" in kinds:
            inner = inner._orig_mod
        elif kinds.intersection(_WRAPPERS):
            inner = inner.module
        elif callable(getattr(inner, "get_base_model", None)):
            inner = inner.get_base_model()
        else:
            return inner


def head_layer(model: Any) -> nn.Module:
    """The module of the last product, of a model without wrappers."""
    name = type(model).__name__
    parts = ("parameters", "config", "get_output_embeddings")
    if not all(hasattr(model, part) for part in parts):
        raise TypeError(f"model must be a Hugging Face model with a head, got {name}")
    layer = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"{name}: it has no head (get_output_embeddings() is None)")
    # What peft trains in a layer's place.
    saved = getattr(layer, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict):
        layer = saved[layer.active_adapter]
    if isinstance(layer, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        raise ValueError(f"{name}: it has {len(layer)} heads, {type(layer).__name__}, not one")
    if not isinstance(layer, nn.Module):
        raise TypeError(f"{name}: its head must be a module, got {type(layer).__name__}")
    return layer


class _NoColumns(torch.autograd.Function):
    """Logits of no columns, which carry no gradient, but hang on what logits hang on: engines look
    from the outputs for what a backward will reach."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.inputs = 1 + len(parameters)
        return hidden.new_empty(*hidden.shape[:-1], 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None,) * ctx.inputs


def no_columns(layer: nn.Module, hidden: Tensor) -> Tensor:  # [..., 0]
    """What stands for the product of the layer where nobody looks at it."""
    apply: Callable[..., Tensor] = _NoColumns.apply
    return apply(hidden, *layer.parameters())


@contextmanager
def in_place_of(
    layer: nn.Module, product: Callable[[Tensor], Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While it is open `product` runs instead of the layer; (hidden, result) of its calls.

    Not a hook: one of a layer cannot keep its product from being made.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def forward(hidden: Tensor) -> Tensor:
        result = product(hidden)
        calls.append((hidden, result))
        return result

    own = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        yield calls
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def logits_of(output: Any) -> Tensor:
    """What a forward returns as logits."""
    found = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", None) if found is None else found
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ValueError(f"its output has no logits, got {type(output).__name__}")
    return found


def only_call(calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(calls) != 1:
        raise ValueError(f"its head is called {len(calls)} times in a forward, not once")
    return calls[0]
