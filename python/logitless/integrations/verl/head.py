"""The head under `fused_kernel_options: {impl_backend: logitless}`."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.head_arrays import head_arrays
from logitless.integrations.transformers.layer import (
    head_layer,
    in_place_of,
    no_columns,
    only_call,
    unwrapped,
)
from logitless.integrations.verl import hooks

BACKEND = "logitless"
# Where a model keeps what was measured on it.
MEASURED = "logitless_head"


class HeadCall(NamedTuple):
    """What a head is given in one forward of its model, as the head ops take it."""

    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    labels: Tensor  # [B, T]
    # bias, adapter, softcap, logit_scale and temperature
    options: dict[str, Any]


# What may run in a forward in place of the scoring: (log-probs, entropies, loss), [B, T].
Scorer = Callable[[HeadCall], tuple[Tensor, Tensor, Tensor]]


def replace_patch(module: types.ModuleType) -> None:
    """verl's choice of a fused forward knows this library's from now on."""
    own = hooks.find(module, hooks.PATCH)
    hooks.check(f"{module.__name__}.{hooks.PATCH}", own, hooks.PATCH_PARAMETERS)

    @functools.wraps(own)
    def patch(
        model: Any, use_fused_kernels: bool = False, fused_kernels_backend: str | None = None
    ) -> None:
        if use_fused_kernels and fused_kernels_backend == BACKEND:
            add_head(model)
        else:
            own(model, use_fused_kernels, fused_kernels_backend)

    setattr(module, hooks.PATCH, patch)


def add_head(model: Any) -> None:
    """`model(..., temperature=t)` returns log-probs and entropies of labels, not logits.

    The whole forward of the model runs, but for the product of its head. Without a temperature it
    is as it was. This instance alone is changed: a reference model of its class is not.
    """
    own = model.forward
    result = hooks.find(importlib.import_module(hooks.OUTPUTS), hooks.OUTPUT)

    # torch.compile traces the model inside, and leaves this to Python: layers change for a call.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    # The engine reads the signature of a model's forward.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        temperature: Any = None,
        shift_labels: Tensor | None = None,
        scored_rows: Tensor | None = None,
        scorer: Scorer | None = None,
        **inputs: Any,
    ) -> Any:
        if temperature is None:
            return own(*args, **inputs)
        layer = head_layer(self)
        with in_place_of(layer, lambda hidden: no_columns(layer, hidden)) as calls:
            own(*args, **inputs)
        hidden, _ = only_call(calls)
        labels = inputs["input_ids"].roll(-1, dims=-1) if shift_labels is None else shift_labels
        call = _call(self, hidden, labels, temperature)
        if scorer is not None:
            logp, entropy, loss = scorer(call)
            return result(loss=loss, log_probs=logp, entropy=entropy)
        stats = ll.linear_token_stats(
            call.hidden, call.weight, labels, mask=scored_rows, **call.options
        )
        return result(log_probs=stats.logp, entropy=stats.entropy)

    model.forward = types.MethodType(forward, model)
    setattr(model, MEASURED, None)


def measure(model: Any) -> bool:
    """Softcap, scale and cut columns of a model with our head, by all ranks; whether it has one."""
    inner = unwrapped(model) if has_head(model) else None
    if inner is None:
        return False
    found = ll.head_of(model)
    options = {"softcap": found.softcap, "logit_scale": found.logit_scale}
    setattr(inner, MEASURED, (options, found.vocab))
    return True


def has_head(model: Any) -> bool:
    return any(hasattr(module, MEASURED) for module in model.modules())


def _call(model: Any, hidden: Tensor, labels: Tensor, temperature: Any) -> HeadCall:
    """Parameters are looked up again: engines and peft replace them."""
    measured = getattr(model, MEASURED)
    if measured is None:
        raise ValueError(
            f"{type(model).__name__}: impl_backend={BACKEND} needs an engine that measures the "
            "head: actor.strategy=fsdp2"
        )
    options, vocab = measured
    weight, arrays = head_arrays(model, vocab, hidden)
    return HeadCall(hidden, weight, labels, {**options, **arrays, "temperature": temperature})
