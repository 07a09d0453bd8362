"""Batches of log-probs, and NumPy or torch around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=25, deadline=None)
KINDS = ("numpy", "torch")
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def given(kind: str, *arrays: Any) -> tuple[Any, ...]:
    """The arrays, as tensors where kind is "torch"."""
    if kind == "numpy":
        return arrays
    import torch

    return tuple(None if x is None else torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)


def array(result: Any) -> Any:
    return result.detach().numpy() if hasattr(result, "numpy") else result


@st.composite
def answers(draw: Any) -> dict[str, Any]:
    """Padded rows [B, T] with holes and empty rows, NaN outside the mask, and numbers [B]."""
    b, t = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.arange(t) < rng.integers(0, t + 1, b)[:, None]
    mask &= rng.random((b, t)) > 0.2

    def values(low: float, high: float) -> Any:
        return np.where(mask, rng.uniform(low, high, (b, t)), np.nan)

    return {
        "mask": mask,
        "steps": mask & (rng.random((b, t)) > 0.5),
        "logp": values(-3, 0),
        "ref_logp": values(-3, 0),
        "values": values(-1, 1),
        "rewards": rng.uniform(-1, 1, b),
        "beta": float(rng.uniform(0.01, 1)),
    }
