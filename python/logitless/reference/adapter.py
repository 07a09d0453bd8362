"""Low-rank adapters on a head: the merged weight, and gradients through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

F64: TypeAlias = npt.NDArray[np.float64]


def merged_weight(weight: Any, adapters: Iterable[Any]) -> F64:  # [V, H]
    """weight + the sum of scale * B A over (A, B, scale)."""
    total = np.asarray(weight, np.float64)
    for A, B, scale in adapters:
        total = total + scale * (np.asarray(B, np.float64) @ np.asarray(A, np.float64))
    return total


def adapter_backward(d_merged: Any, adapter: Any) -> tuple[F64, F64]:
    """(dA, dB) from the gradient of the merged weight, [V, H]."""
    A, B, scale = adapter
    d = np.asarray(d_merged, np.float64)
    return (
        scale * (np.asarray(B, np.float64).T @ d),
        scale * (d @ np.asarray(A, np.float64).T),
    )
