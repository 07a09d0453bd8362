"""Checks of shapes and dtypes that torch and NumPy inputs share."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.options import LogitTransform
from logitless.inputs.weights import FLOATS, refuse_sharded


def framework(
    op: str,
    optional: dict[str, Any] | None = None,
    *,
    mixed: bool = False,
    anywhere: dict[str, Any] | None = None,
    **given: Any,
) -> str:
    """ "torch" or "numpy": what every array is; `optional` and `anywhere` where they are not None.

    Dense, and of torch on one device; with `mixed`, and those in `anywhere`, on any that has
    numbers.
    """
    torch = sys.modules.get("torch")
    first, main = next(iter(given.items()))
    some = {name: x for name, x in (optional or {}).items() if x is not None}
    free = {name: x for name, x in (anywhere or {}).items() if x is not None}
    if torch is None or not isinstance(main, torch.Tensor):
        _check_numpy(op, first, given | some | free)
        return "numpy"
    strided, device = torch.strided, main.device
    for arrays, of_any in ((given, mixed), (some, mixed), (free, True)):
        for name, x in arrays.items():
            if not isinstance(x, torch.Tensor):
                raise _no_array(op, name, x, "torch", first)
            # of a weight the op says more
            if type(x) is not torch.Tensor and name != "weight":
                refuse_sharded(op, name, x)
            if x.layout is not strided or x.is_nested:
                raise TypeError(f"{op}: {name} must be dense, got {shown(x)}")
            if x.device != device or device.type == "meta":
                _refuse_device(op, name, x, first, device, of_any)
    return "torch"


def _refuse_device(op: str, name: str, x: Any, first: str, device: Any, mixed: bool) -> None:
    if x.device.type == "meta":
        raise ValueError(f"{op}: {name} must hold numbers, got a tensor on the meta device")
    if not mixed and device.type != "meta":
        raise ValueError(
            f"{op}: {name} must be on the device of {first}, {device}, got one on {x.device}"
        )


def _check_numpy(op: str, first: str, arrays: dict[str, Any]) -> None:
    for name, x in arrays.items():
        # the latter two are arrays with other rules
        if not isinstance(x, np.ndarray) or isinstance(x, (np.ma.MaskedArray, np.matrix)):
            raise _no_array(op, name, x, "numpy", first)


def _no_array(op: str, name: str, x: Any, kind: str, first: str) -> TypeError:
    if name != first and (is_tensor(x) or isinstance(x, np.ndarray)):
        other = "torch" if is_tensor(x) else "numpy"
        return TypeError(
            f"{op}: arrays must be all torch or all NumPy, got {first} from {kind} and {name} "
            f"from {other}"
        )
    what = "None" if x is None else f"{shown(x)}, a {type(x).__name__}"
    return TypeError(f"{op}: {name} must be a torch tensor or a NumPy array, got {what}")


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
    dtype = array.dtype
    own = _numpy_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")
    if own not in expected:
        raise TypeError(f"{op}: {name} must be {' or '.join(expected)}, got {shown(array)}")


# NumPy makes the name of a dtype anew each time, in Python.
_numpy_name = lru_cache(maxsize=64)(str)


def check_head(
    op: str,
    head: LogitTransform,
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
        per_sequence = (shape[:1], (*shape[:1], 1)) if len(shape) == 2 else ()
        if shape_of(head.temperature) not in per_sequence:
            check_shape(op, "temperature", head.temperature, letters, shape)
        check_dtype(op, "temperature", head.temperature, *FLOATS, "int64", "int32")
    if head.bias is not None:
        check_shape(op, "bias", head.bias, "[V]", (v,))
        check_dtype(op, "bias", head.bias, *FLOATS)


def check_tokens(
    op: str,
    source_name: str,
    source: Any,  # logits [*targets, V] or hidden [*targets, H]
    targets: Any,  # [N] or [B, T], integer
    mask: Any,  # bool, shape of targets, or None
    head: LogitTransform,
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
    check_dtype(op, "hidden", hidden, *FLOATS)
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"{op}: hidden and weight must share one dtype, got {hidden.dtype} and {weight.dtype}; "
            "cast one of them"
        )
    return shape_of(weight)[0]
