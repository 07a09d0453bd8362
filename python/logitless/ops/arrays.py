"""Checks of shapes and dtypes that torch and NumPy inputs share."""

from __future__ import annotations

import math
from typing import Any

from logitless.ops.options import HeadOptions


def is_numpy(array: Any) -> bool:
    return type(array).__module__ == "numpy"


def shape_of(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)


def check_tokens_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if shape_of(array) != shape:
        raise ValueError(
            f"{name} must have the shape of targets {list(shape)}, got {list(shape_of(array))}"
        )


def check_inputs(
    op: str,
    source_name: str,
    source: Any,  # logits [*targets, V] or hidden [*targets, H]
    targets: Any,  # [N] or [B, T], integer
    mask: Any,  # bool, shape of targets, or None
    head: HeadOptions,
    vocab: int,
) -> tuple[int, ...]:
    """Everything a token op asks of its arrays before it starts; returns the shape of targets."""
    shape = shape_of(targets)
    if len(shape) not in (1, 2):
        raise ValueError(f"{op}: targets must be [N] or [B, T], got shape {list(shape)}")
    if shape_of(source)[:-1] != shape:
        raise ValueError(
            f"{op}: {source_name} must have shape [*targets.shape, {source_name[0].upper()}] = "
            f"{[*shape, '...']}, got {list(shape_of(source))}"
        )
    if str(targets.dtype).removeprefix("torch.") not in ("int64", "int32"):
        raise TypeError(f"{op}: targets must be int64 or int32, got {targets.dtype}")
    if mask is not None:
        check_tokens_shape(f"{op}: mask", mask, shape)
        if str(mask.dtype).removeprefix("torch.") != "bool":
            raise TypeError(f"{op}: mask must be bool, got {mask.dtype}")
    if not isinstance(head.temperature, (int, float)):
        check_tokens_shape(f"{op}: temperature", head.temperature, shape)
    if head.bias is not None and shape_of(head.bias) != (vocab,):
        raise ValueError(f"{op}: bias must be [V] = [{vocab}], got {list(shape_of(head.bias))}")
    if vocab < 1:
        raise ValueError(f"{op}: the vocabulary must have at least one entry, got V = {vocab}")
    return shape


def check_temperatures(op: str, lowest: float) -> None:
    if not (math.isfinite(lowest) and lowest > 0):
        raise ValueError(f"{op}: temperature must be finite and > 0 on every row, got {lowest}")
