"""Checks of shapes and dtypes that torch and NumPy inputs share."""

from __future__ import annotations

from typing import Any

from logitless.ops.options import HeadOptions
from logitless.ops.tokens import is_tensor
from logitless.ops.weights import refuse_sharded


def framework(op: str, **arrays: Any) -> str:
    """ "torch" or "numpy": what every given array (None aside) is."""
    kinds = {}
    for name, array in arrays.items():
        if is_tensor(array):
            # Of a weight the op says more.
            if name != "weight":
                refuse_sharded(op, name, array)
            kinds[name] = "torch"
        elif type(array).__module__ == "numpy":
            kinds[name] = "numpy"
        elif array is not None:
            raise TypeError(
                f"{op}: {name} must be a torch tensor or a NumPy array, got {type(array).__name__}"
            )
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise TypeError(
                f"{op}: arrays must be all torch or all NumPy, got {first} from {kinds[first]} "
                f"and {name} from {kind}"
            )
    return kinds[first]


def shape_of(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)


def zeros_like(array: Any) -> Any:
    """Data of the same kind and shape, whatever is differentiated."""
    if is_tensor(array):
        return array.new_zeros(array.shape)
    import numpy as np

    return np.zeros_like(array)


def check_shape(op: str, name: str, array: Any, letters: str, expected: tuple[int, ...]) -> None:
    if shape_of(array) != expected:
        raise ValueError(
            f"{op}: {name} must be {letters} = {list(expected)}, got {list(shape_of(array))}"
        )


def check_dtype(op: str, name: str, array: Any, *expected: str) -> None:
    if str(array.dtype).removeprefix("torch.") not in expected:
        raise TypeError(f"{op}: {name} must be {' or '.join(expected)}, got {array.dtype}")


def check_head(
    op: str,
    head: HeadOptions,
    letters: str,
    shape: tuple[int, ...],
    v: int,
    *,
    sharded: bool = False,
) -> None:
    """The arrays among the head's options; `shape` is that of the tokens, written `letters`.

    Of a vocabulary that is `sharded` a rank may have nothing.
    """
    if v < 1 and not sharded:
        raise ValueError(f"{op}: the vocabulary must have at least one entry, got V = {v}")
    if not isinstance(head.temperature, (int, float)):
        check_shape(op, "temperature", head.temperature, letters, shape)
    if head.bias is not None:
        check_shape(op, "bias", head.bias, "[V]", (v,))


def check_tokens(
    op: str,
    source_name: str,
    source: Any,  # logits [*targets, V] or hidden [*targets, H]
    targets: Any,  # [N] or [B, T], integer
    mask: Any,  # bool, shape of targets, or None
    head: HeadOptions,
    vocab: int,
    *,
    sharded: bool = False,
) -> tuple[int, ...]:
    """Everything a token op asks of its arrays before it starts; returns the shape of targets."""
    shape = shape_of(targets)
    if len(shape) not in (1, 2):
        raise ValueError(f"{op}: targets must be [N] or [B, T], got shape {list(shape)}")
    letters = "targets.shape"
    letter, last = "V" if source_name == "logits" else "H", shape_of(source)[-1:]
    check_shape(op, source_name, source, f"[*targets.shape, {letter}]", shape + last)
    check_dtype(op, "targets", targets, "int64", "int32")
    if mask is not None:
        check_shape(op, "mask", mask, letters, shape)
        check_dtype(op, "mask", mask, "bool")
    check_head(op, head, letters, shape, vocab, sharded=sharded)
    return shape


def check_weight(op: str, hidden: Any, weight: Any) -> int:
    """hidden [..., H] and weight [V, H] of one floating dtype; returns V."""
    if len(shape_of(weight)) != 2 or shape_of(hidden)[-1:] != shape_of(weight)[1:]:
        raise ValueError(
            f"{op}: hidden must be [..., H] and weight [V, H], got {list(shape_of(hidden))} and "
            f"{list(shape_of(weight))}"
        )
    check_dtype(op, "hidden", hidden, "float32", "bfloat16", "float16", "float64")
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"{op}: hidden and weight must share one dtype, got {hidden.dtype} and {weight.dtype}; "
            "cast one of them"
        )
    return shape_of(weight)[0]
