"""Models that return what their head reads where they return logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from logitless.integrations.transformers.layer import (
    head_layer,
    in_place_of,
    logits_of,
    no_columns,
    only_call,
    unwrapped,
)
from logitless.integrations.trl.call import HeadCall, head_call
from logitless.integrations.trl.distillation.measured import measured


class OpenHead:
    """The head of a model whose states stand for its logits; `call` is set by a forward."""

    def __init__(self) -> None:
        self.call: HeadCall | None = None

    def at(self, states: Tensor, temperature: float) -> HeadCall:
        """The head on a part of the states that the forward returned."""
        assert self.call is not None
        return HeadCall(states, self.call.weight, self.call.options | {"temperature": temperature})


@contextmanager
def states_for_logits(model: Any) -> Iterator[OpenHead]:
    """While it is open `model(...).logits` are the states [B, T, H] that its head reads.

    The whole forward runs, but for the product, and the states hang on its outputs, so that DDP,
    FSDP2 and gradient checkpointing see the forward that they prepare a backward for.
    """
    inner, found = unwrapped(model), measured(model)
    layer, head = head_layer(inner), OpenHead()
    dtypes: list[torch.dtype] = []

    def product(hidden: Tensor) -> Tensor:
        kind = hidden.device.type
        # what autocast would make of the states for the product
        autocast = torch.is_autocast_enabled(kind)
        dtypes.append(torch.get_autocast_dtype(kind) if autocast else hidden.dtype)
        return no_columns(layer, hidden)

    def returned(module: Any, given: Any, output: Any) -> Any:
        hidden, _ = only_call(calls)
        calls.clear()
        states = hidden.to(dtypes.pop())
        empty = logits_of(output).to(states.dtype).reshape(*states.shape[:-1], 0)
        output.logits = torch.cat((states, empty), dim=-1)
        head.call = head_call(inner, output.logits, found, 1.0)
        return output

    hook = model.register_forward_hook(returned)
    try:
        with in_place_of(layer, product) as calls:
            yield head
    finally:
        hook.remove()
