"""What a head is given in a forward of its model, as the head ops take it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from logitless.integrations.head_arrays import head_arrays
from logitless.integrations.transformers.layer import head_layer


class HeadCall(NamedTuple):
    """The head of one forward."""

    hidden: Tensor  # [B, T, H] or [N, H]
    weight: Tensor  # [V, H]
    # bias, adapter, softcap, logit_scale and temperature
    options: dict[str, Any]


def head_call(model: Any, hidden: Tensor, found: Any, temperature: float) -> HeadCall:
    """Of the model without wrappers, whose head `ll.head_of` found.

    Parameters are looked up again: engines and peft replace them.
    """
    layer: Any = head_layer(model)
    hidden = hidden.to(layer.weight.device)
    weight, options = head_arrays(model, found.vocab, hidden)
    chain = {"softcap": found.softcap, "logit_scale": found.logit_scale, "temperature": temperature}
    return HeadCall(hidden, weight, options | chain)
