"""What peft's LoRA adds to a head, as the head ops take it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# (A [r, H], B [V, r], scale)
Adapter = tuple[Tensor, Tensor, float]


def adapters_of(layer: Any, vocab: int | None = None) -> list[Adapter]:
    """Of the adapters that a forward of the layer adds now, B cut to `vocab` rows.
    Raises
    ValueError for what is no plain LoRA."""
    if not _has_adapters(layer):
        return []
    if not all(hasattr(layer, name) for name in ("lora_A", "lora_B", "scaling", "lora_dropout")):
        raise _no_lora(type(layer).__name__)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return [_lora(layer, name, vocab) for name in names]


def _is_tuner(layer: Any) -> bool:
    return hasattr(layer, "base_layer") and callable(getattr(layer, "get_base_layer", None))


def _has_adapters(layer: Any) -> bool:
    """Merged ones are in the weight."""
    return _is_tuner(layer) and not (layer.disable_adapters or layer.merged)


def _lora(layer: Any, name: str, vocab: int | None) -> Adapter:
    variant = getattr(layer, "lora_variant", {}).get(name)
    if variant is not None or getattr(layer, "use_dora", {}).get(name):
        kind = "DoRA" if variant is None else type(variant).__name__
        raise _no_lora(kind)
    A, B, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if not (type(A) is type(B) is nn.Linear):
        raise _no_lora(type(B).__name__)
    if A.bias is not None or B.bias is not None:
        raise _no_lora("LoRA with lora_bias=True")
    if layer.training and getattr(dropout, "p", 0.0) > 0:
        raise ValueError(
            f"the adapter on its head has lora_dropout={dropout.p}, which is not built: it is 0 in "
            "evaluation mode, and in training pass lora_dropout=0 or leave the head out of "
            "target_modules"
        )
    up: Any = B.weight
    if vocab is not None and vocab < len(up):
        up = up[:vocab]
    return A.weight, up, float(layer.scaling[name])


def _no_lora(kind: str) -> ValueError:
    return ValueError(
        f"its head has an adapter of the kind {kind}, of which only plain LoRA is built: merge it, "
        "or leave the head out of target_modules"
    )
