"""The array functions that advantages are written with, for NumPy. `TorchGroups` has the same.

Values are float64. `ids` are int64 in [0, number), one for each value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends.token_kernels.arrays import NumpyArrays
from logitless.inputs.checks import is_tensor


class NumpyGroups(NumpyArrays):
    @staticmethod
    def exp(x: Any) -> Any:
        return np.exp(x)

    @staticmethod
    def row_max(x: Any) -> Any:
        """[B, 1]"""
        return x.max(axis=1, keepdims=True)

    @staticmethod
    def first(which: Any) -> Any:
        """The place of the first that is true."""
        return np.argwhere(which)[0]

    @staticmethod
    def numbered(given: Any) -> Any:
        """Equal ids get one number in [0, len(given))."""
        return np.unique(given, return_inverse=True)[1].reshape(-1)

    @staticmethod
    def sums(values: Any, ids: Any, number: int) -> Any:
        return np.bincount(ids, weights=values, minlength=number)

    @staticmethod
    def largest(values: Any, ids: Any, number: int) -> Any:
        """-inf where there is none."""
        out = np.full(number, -np.inf)
        np.maximum.at(out, ids, values)
        return out

    @staticmethod
    def order(values: Any, ids: Any) -> Any:
        """Places by id, and by value within one."""
        return np.lexsort((values, ids))

    @staticmethod
    def later(x: Any, by: int) -> Any:
        """x[:, t + by] at t, and 0 beyond the end."""
        return np.concatenate([x[:, by:], np.zeros_like(x[:, :by])], axis=1)


def arrays_of(x: Any) -> Any:
    """The namespace for x."""
    if not is_tensor(x):
        return NumpyGroups
    from logitless.advantages.torch_arrays import TorchGroups

    return TorchGroups
