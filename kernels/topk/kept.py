"""What the kernels of kept entries share: the arrays of a call, and the order of entries."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import STATE, RowArrays

# Before every float: neither a NaN nor what is absent is an entry.
NONE = tl.constexpr(-(2**31))
# The order of -inf, above which every entry is.
LEAST = tl.constexpr(-(2**31) + 0x7FFFFF)
BITS = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True)
class Kept:
    """Entries of [n] rows, room for `room` of each, of which the first half stays in the end. Rows
    may lie apart, those of ids as far."""

    values: Tensor  # [n, room] float64, float32 numbers: y
    ids: Tensor  # [n, room] int32
    threshold: Tensor  # [n] float64: an entry that is not larger cannot be among the kept
    count: Tensor  # [n] int64
    margin: float  # nats below the maximum

    @property
    def room(self) -> int:
        return self.values.shape[1]

    @property
    def stride(self) -> int:
        return self.values.stride(0)

    def check(self, rows: RowArrays, state: Tensor) -> None:
        """Them, and the states of the rows."""
        for name, array, dtype in (
            ("values", self.values, torch.float64),
            ("ids", self.ids, torch.int32),
        ):
            if array.dtype != dtype or array.device != rows.device:
                raise TypeError(f"{name} must be {dtype} on {rows.device}, got {array.dtype}")
            if array.shape != (rows.n, self.room) or array.stride() != (self.stride, 1):
                raise ValueError(
                    f"{name} must be [{rows.n}, {self.room}] of stride [{self.stride}, 1], got "
                    f"{list(array.shape)} of {list(array.stride())}"
                )
        if self.room < 2 or self.room % 2:
            raise ValueError(f"there must be room for twice what is kept, got {self.room}")
        rows.check("threshold", self.threshold, torch.float64)
        rows.check("count", self.count, torch.int64)
        rows.check("state", state, torch.float64, shape=(rows.n, STATE))


@triton.jit
def ordered(y):
    # A float32 as an integer in the same order. Both zeros are equal.
    bits = tl.where(y == 0, 0.0, y).to(tl.int32, bitcast=True)
    return tl.where(y == y, tl.where(bits < 0, bits ^ BITS, bits), NONE)


@triton.jit
def unordered(order):
    return tl.where(order < 0, order ^ BITS, order).to(tl.float32, bitcast=True)


@triton.jit
def floor_of(limit):
    # The order of the largest float32 that is not above a float64.
    near = limit.to(tl.float32)
    floor = ordered(near) - (near.to(tl.float64) > limit).to(tl.int32)
    return tl.where(limit == limit, floor, LEAST)


@triton.jit
def limit_of(state_ptr, row, scale, margin):
    # What lies no higher is not kept, so far as the row is known.
    return tl.load(state_ptr + row * 8) - margin / scale


@triton.jit
def count_of(count_ptr, row, inside, most):
    # How many entries a row has, whatever the memory says.
    count = tl.load(count_ptr + row, mask=inside, other=0)
    return tl.where((count < 0) | (count > most), 0, count)
