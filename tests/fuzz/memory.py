"""Arrays whose surroundings are watched, and objects that say what they like through DLPack."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rng = np.random.Generator

GUARD = 64
PATTERN = 0xA5


@dataclass
class Memory:
    """The memory of a case's arrays. Guards lie before and after each array in its block, or,
    where a sanitizer watches the block's ends, nothing does."""

    guarded: bool
    blocks: list[tuple[Any, int, int]] = field(default_factory=list)  # block, start and stop in it

    def place(self, values: Any, offset: int = 0) -> Any:
        """A copy of `values`; with an offset it is not aligned."""
        guard = GUARD if self.guarded else 0
        start = guard + offset
        block = np.full(start + values.nbytes + guard, PATTERN, np.uint8)
        self.blocks.append((block, start, start + values.nbytes))
        array = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        array[...] = values
        return array

    def check_guards(self) -> None:
        for block, start, stop in self.blocks:
            around = np.concatenate((block[:start], block[stop:]))
            assert (around == PATTERN).all(), "a call wrote beside an array"


# ---- DLPack of version 1, written out

STRINGS = {False: b"dltensor", True: b"dltensor_versioned"}
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
BFLOAT = 4


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Exporter:
    """An array given out through DLPack as the fields say, whatever it is; `bfloat` names its
    16-bit words bfloat16. Fields: those of Tensor, `major`, `flags`, and `name` of the capsule."""

    def __init__(self, array: Any, *, versioned: bool = True, bfloat: bool = False, **lies: Any):
        self.array = array
        self.versioned = versioned
        self.name = lies.pop("name", STRINGS[versioned])
        kind = CODES[array.dtype.kind]
        sizes = array.shape
        self.shape = (ctypes.c_int64 * 8)(*lies.pop("shape", sizes))
        steps = lies.pop("strides", [step // array.itemsize for step in array.strides])
        self.strides = (ctypes.c_int64 * 8)(*steps)
        tensor = Tensor(
            array.ctypes.data, 1, 0, array.ndim, BFLOAT if bfloat else kind, 8 * array.itemsize, 1,
            self.shape, self.strides, 0,
        )  # fmt: skip
        flags = lies.pop("flags", 0 if array.flags.writeable else 1)
        head = {"major": lies.pop("major", 1)}
        for name, value in lies.items():
            setattr(tensor, name, value)
        if versioned:
            self.held: Any = Versioned(head["major"], 1, None, None, flags, tensor)
        else:
            self.held = Managed(tensor, None, None)

    def __dlpack__(self, **options: Any) -> Any:
        if not self.versioned and options:
            raise TypeError("an older producer knows no max_version")
        return _new(ctypes.addressof(self.held), self.name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Liar:
    """Its __dlpack__ gives out `answer`, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __dlpack__(self, **options: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


# Each is seen to be a lie whatever the array. 2^62 words do not fit into any memory, nor do
# negative ones.
LIES: tuple[dict[str, Any], ...] = (
    {"ndim": -1},
    {"ndim": 5},
    {"ndim": 1 << 30},
    {"ndim": 1, "shape": (-1,)},
    {"ndim": 2, "shape": (4, -4)},
    {"ndim": 2, "shape": (1 << 40, 1 << 40)},
    {"ndim": 3, "shape": (1 << 32, 1 << 32, 0)},
    {"ndim": 1, "shape": ((1 << 63) - 1,)},
    {"ndim": 2, "shape": (2, 1 << 20), "strides": (1 << 62, 1)},
    {"ndim": 2, "shape": (2, 2), "strides": (-(1 << 63), 1)},
    {"ndim": 1, "shape": (3,), "strides": (-(1 << 61),)},
    {"ndim": 1, "shape": (4,), "data": None},
    {"byte_offset": (1 << 64) - 16},
    {"byte_offset": (1 << 64) - 1},
    {"code": 99},
    {"bits": 7},
    {"lanes": 0},
    {"lanes": 4},
    {"device_type": 2},
    {"device_type": -5},
    {"major": 0, "versioned": True},
    {"major": 2, "versioned": True},
    {"name": b"used_dltensor"},
    {"name": b"something"},
)


def lie(array: Any, rng: Rng) -> Any:
    """`array` through an object that lies in a way that a reader must notice."""
    fields = dict(LIES[rng.integers(len(LIES))])
    versioned = fields.pop("versioned", bool(rng.integers(2)))
    return Exporter(array if array.size else np.zeros(2), versioned=versioned, **fields)
