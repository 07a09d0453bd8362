"""Backward from the largest entries of each row only: which they are, what is lost, the bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def largest(
    y: Array,  # [V], -inf allowed
    keep: int,
    margin: float = math.inf,
) -> Array:
    """Ids of the `keep` largest entries with y > max y - margin, sorted by (y, -id)."""
    y = np.asarray(y, np.float64)
    order = np.lexsort((np.arange(len(y)), -y))
    return order[y[order] > (y.max() - margin if margin < math.inf else -math.inf)][:keep]
