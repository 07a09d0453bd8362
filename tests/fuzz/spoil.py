"""What is done to one argument of a valid call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Exporter, Liar, Memory, Rng, lie

DTYPES = ("f4", "f8", "f2", "i4", "i8", "u1", "?", "i1", "u8", "c8", "i2")
SCALARS: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 7, 2047, 2048, 4097, 2**31 - 1, 2**31, -(2**31), 2**53, 2**61, 2**62, 2**63 - 1,
    -(2**63), 2**63, 2**64, 1.5, 0.0, -1.0, 1e-320, 1e300, math.nan, math.inf, -math.inf, None, "x",
    True, [], np.float32(2), np.int64(3),
)  # fmt: skip
OBJECTS: tuple[Any, ...] = (
    None, 3, "text", b"bytes", [1.0], object(), np.float64(1), Liar(None), Liar(5), Liar(object()),
    Liar(ValueError("no")), Liar(TypeError("no")), Liar(BufferError("no")),
)  # fmt: skip
SPECIAL = (0, -1, 1, math.nan, math.inf, -math.inf, 1e300, -1e300, 2**31, -(2**31), 2**62, -(2**63))


def _dtype(array: Any, rng: Rng, memory: Memory) -> Any:
    with np.errstate(all="ignore"):
        return memory.place(array.astype(DTYPES[rng.integers(len(DTYPES))]))


def _shape(array: Any, rng: Rng, memory: Memory) -> Any:
    changed = (
        lambda: array.ravel()[:-1] if array.size else np.zeros(1, array.dtype),
        lambda: np.concatenate((array.ravel(), array.ravel()[:1])),
        lambda: array[None],
        lambda: array.reshape((*array.shape, 1)),
        lambda: array.ravel(),
        lambda: array.T,
        lambda: array[:0],
        lambda: np.zeros((0, 2**40), array.dtype),
        lambda: array.ravel()[:1].reshape(()) if array.size else array,
        lambda: np.zeros((1, 1, 1, 1, 1), array.dtype),
        lambda: array[..., :-1],
        lambda: array[:-1] if array.ndim else array,
    )[rng.integers(12)]()
    return memory.place(np.ascontiguousarray(changed).reshape(changed.shape))


def _strides(array: Any, rng: Rng, memory: Memory) -> Any:
    if not array.ndim:
        return array
    twice = memory.place(np.repeat(array, 2, axis=int(rng.integers(array.ndim))))
    return (
        lambda: array[::-1],
        lambda: array[..., ::-1],
        lambda: twice[::2] if twice.shape[0] != array.shape[0] else twice[..., ::2],
        lambda: np.lib.stride_tricks.as_strided(array, strides=(0,) * array.ndim),
        lambda: np.lib.stride_tricks.as_strided(
            array, shape=array.shape, strides=(array.itemsize,) * array.ndim
        ),
        lambda: np.asfortranarray(array),
    )[rng.integers(6)]()


def _values(array: Any, rng: Rng, memory: Memory) -> Any:
    """In place: some elements become special, or others of the array."""
    flat = array.reshape(-1)
    some = rng.integers(0, max(flat.size, 1), int(rng.integers(1, 4))) if flat.size else []
    with np.errstate(all="ignore"):
        for i in some:
            value = SPECIAL[rng.integers(len(SPECIAL))] if rng.random() < 0.7 else None
            if value is None:
                flat[i] = flat[rng.integers(flat.size)]
            elif array.dtype.kind == "f":
                flat[i] = value
            elif array.dtype.kind == "b":
                flat.view(np.uint8)[i] = rng.integers(256)
            else:
                whole = int(value) if math.isfinite(value) and abs(value) < 2**63 else 2**31 - 1
                limits = np.iinfo(array.dtype)
                flat[i] = min(max(whole, int(limits.min)), int(limits.max))
    return array


def _read_only(array: Any, rng: Rng, memory: Memory) -> Any:
    view = array.view()
    view.setflags(write=False)
    return view


def _misaligned(array: Any, rng: Rng, memory: Memory) -> Any:
    return memory.place(array, offset=1)


def _older(array: Any, rng: Rng, memory: Memory) -> Any:
    """The same through a producer of before DLPack 1."""
    return Exporter(array, versioned=False)


ARRAYS: tuple[Callable[[Any, Rng, Memory], Any], ...] = (
    _dtype, _shape, _strides, _values, _values, _read_only, _misaligned, _older,
)  # fmt: skip


def spoil(case: Case, rng: Rng, memory: Memory) -> None:
    """Makes one argument of the case wrong, or at least strange."""
    key = list(case.arguments)[rng.integers(len(case.arguments))]
    if any(done.startswith(f"{key}: ") for done in case.spoilt):
        return
    value = case.arguments[key]
    if isinstance(value, np.ndarray):
        way = rng.random()
        if way < 0.08:
            what, changed = "object", OBJECTS[rng.integers(len(OBJECTS))]
        elif way < 0.2:
            what, changed = "lie", lie(value, rng)
            case.must_raise = True
        elif way < 0.28:
            arrays = [k for k, v in case.arguments.items() if isinstance(v, np.ndarray)]
            other = arrays[rng.integers(len(arrays))]
            what, changed = f"same as {other}", case.arguments[other]
        else:
            change = ARRAYS[rng.integers(len(ARRAYS))]
            what, changed = change.__name__, change(value, rng, memory)
    elif isinstance(value, dict):
        what, changed = "field", _field(value, rng)
    else:
        what, changed = "scalar", SCALARS[rng.integers(len(SCALARS))]
    case.spoilt.append(f"{key}: {what}")
    case.arguments[key] = changed


def _field(fields: dict[str, Any], rng: Rng) -> dict[str, Any]:
    changed = dict(fields)
    name = list(fields)[rng.integers(len(fields))]
    if rng.random() < 0.2:
        del changed[name]
    elif isinstance(fields[name], dict):
        changed[name] = _field(fields[name], rng)
    elif isinstance(fields[name], tuple) and rng.random() < 0.5:
        changed[name] = (math.nan,) * int(rng.integers(7))
    else:
        changed[name] = SCALARS[rng.integers(len(SCALARS))]
    return changed
