"""The array functions that the losses are written with, for NumPy. `TorchArrays` has the same.

A float array is float32 or float64. What a `like` argument holds does not matter: the result lies
where it does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from logitless.backends.forked import without_lost_threads
from logitless.inputs.checks import is_tensor, shown

# Entries of a mask from which it is copied only where it has to be.
MANY = 1 << 15


def to_numpy(name: str, x: Any) -> npt.NDArray[Any]:
    """The values on the CPU, 16-bit floats widened to float32; no copy where none is needed."""
    if is_tensor(x):
        tensor = x.detach() if x.requires_grad else x
        if not x.is_cpu:
            tensor = tensor.cpu()
        if x.element_size() >= 4 or not x.is_floating_point():
            return np.asarray(tensor.numpy())
        with without_lost_threads():
            return np.asarray(tensor.float().numpy())
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, got {shown(x)}")
    return x.astype(np.float32) if x.dtype == np.float16 else x


def tensor_like(x: npt.NDArray[Any], like: Any) -> Any:
    """The array as a tensor where another is."""
    import torch

    return torch.from_numpy(x).to(like.device)


def truths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The same with bytes of 0 and 1 alone: a view of other bytes as bool holds any, all of them
    true, and sums and bitwise operations take them as they are."""
    held = mask.view(np.uint8)
    # looking costs less than a copy where there are many, and more where there are few
    return mask if held.size > MANY and held.max() <= 1 else held.astype(np.bool_)


class NumpyArrays:
    float32, float64, int64, int32 = map(np.dtype, ("float32", "float64", "int64", "int32"))
    # conversions of what a caller gives: to the CPU, and to bytes of 0 and 1
    array, truths = staticmethod(to_numpy), staticmethod(truths)
    where, clip, isfinite = staticmethod(np.where), staticmethod(np.clip), staticmethod(np.isfinite)
    maximum, minimum = staticmethod(np.maximum), staticmethod(np.minimum)

    @staticmethod
    def kind(dtype: Any) -> str:
        """ "f", "b" or another letter for other numbers."""
        return str(dtype.kind)

    @staticmethod
    def flat(x: Any, dtype: Any) -> Any:
        """[N], contiguous."""
        if x.dtype == dtype and x.flags.c_contiguous:
            return x.reshape(-1)
        # what float32 cannot hold is infinite there, and named where the mask is true
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(x, dtype).reshape(-1)

    @staticmethod
    def cast(x: Any, dtype: Any) -> Any:
        return x.astype(dtype, copy=False)

    @staticmethod
    def difference(a: Any, b: Any) -> Any:
        """a - b in float64; of infinities it may be NaN."""
        with np.errstate(invalid="ignore"):
            return a.astype(np.float64) - b

    @staticmethod
    def divided(x: Any, y: Any) -> Any:
        """x / y of arrays and numbers, rounded once."""
        return x / y

    @staticmethod
    def arange(n: int, like: Any) -> Any:
        return np.arange(n, dtype=np.int64)

    @staticmethod
    def repeat(values: Any, counts: Any, total: int) -> Any:
        return np.repeat(values, counts)

    @staticmethod
    def zeros(shape: tuple[int, ...], like: Any) -> Any:
        """float64."""
        return np.zeros(shape)

    @staticmethod
    def sort(x: Any) -> Any:
        return np.sort(x)

    @staticmethod
    def full(like: Any, value: float) -> Any:
        """float64."""
        return np.full(len(like), value)

    @staticmethod
    def true(like: Any) -> Any:
        return np.ones(len(like), np.bool_)

    @staticmethod
    def lengths(rows: int, width: int, like: Any) -> Any:
        return np.full(rows, width, np.int64)

    @staticmethod
    def vector(values: tuple[float, ...], like: Any) -> Any:
        """float64 [len(values)]."""
        return np.array(values, np.float64)

    @staticmethod
    def join(*parts: Any) -> Any:
        """One after the other, in the widest of their dtypes."""
        return np.concatenate(parts)

    @staticmethod
    def columns(*parts: Any) -> Any:
        """[N, len(parts)]."""
        return np.stack(parts, axis=1)

    @staticmethod
    def inverse(count: int) -> float:
        """1 / max(count, 1)"""
        return 1.0 / max(count, 1)

    @staticmethod
    def part(fraction: float, count: int) -> int:
        """So much of a count, rounded down, and at least 1."""
        return max(int(fraction * count), 1)

    @staticmethod
    def numbers(x: Any) -> Any:
        """Those of a vector, one by one: the host's numbers, or arrays without dimensions on a
        device."""
        return x.tolist()


def at_least(number: Any, least: float) -> Any:
    """max(number, least) of a number; of an array without dimensions on a device in float64, for
    torch divides by an integer in float32."""
    if isinstance(number, (int, float)):
        return max(number, least)
    return number.double().clip(min=least)


def at_most(number: Any, most: Any) -> Any:
    """min(number, most) of two such."""
    return min(number, most) if isinstance(number, (int, float)) else number.clip(max=most)


def positive_or_one(number: Any) -> Any:
    """The same number, 1 in place of one that is not positive."""
    if isinstance(number, (int, float)):
        return number if number > 0 else 1.0
    return number.where(number > 0, 1.0)


def quotient(x: Any, y: Any, at_zero: float = math.inf) -> Any:
    """x / y of two numbers, y >= 0; `at_zero` where y is 0."""
    if isinstance(y, (int, float)):
        return x / y if y > 0 else at_zero
    return (x / positive_or_one(y)).where(y > 0, at_zero)


def square_root(x: Any) -> Any:
    return math.sqrt(x) if isinstance(x, (int, float)) else x.sqrt()


def or_infinite(x: Any, y: Any) -> Any:
    """x, and inf where y is."""
    if isinstance(y, (int, float)):
        return y if y == math.inf else x
    return y.where(y == math.inf, x)
