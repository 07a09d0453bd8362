"""The array functions of preference losses for NumPy. `TorchPairs` has the same, and autograd."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.advantages.arrays import NumpyGroups
from logitless.inputs.checks import is_tensor


class NumpyPairs(NumpyGroups):
    @staticmethod
    def exp(x: Any) -> Any:
        with np.errstate(over="ignore"):
            return np.exp(x)

    @staticmethod
    def log_sigmoid(x: Any) -> Any:
        return -np.logaddexp(0.0, -x)

    @staticmethod
    def log_softmax(x: Any) -> Any:
        """Over the last axis."""
        below = x - x.max(axis=-1, keepdims=True)
        return below - np.log(np.exp(below).sum(axis=-1, keepdims=True))

    @staticmethod
    def least(x: Any) -> Any:
        """Over the first axis."""
        return x.min(axis=0)

    @staticmethod
    def data(x: Any) -> Any:
        """The same without its gradient."""
        return x


def arrays_of(x: Any) -> Any:
    """The namespace for x."""
    if not is_tensor(x):
        return NumpyPairs
    from logitless.preference.torch_arrays import TorchPairs

    return TorchPairs
