"""What a sampler with top_k, top_p and min_p must draw from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from logitless.reference.rows import Sets, logits_chain, probabilities

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]


def likeliest(logits: Array, top_p: float, **chain: Any) -> Sets:  # [N, V]
    """Of each row the fewest tokens, largest first, whose mass reaches top_p."""
    found = truncated_probabilities(logits, top_p=top_p, **chain)
    return [np.flatnonzero(row).tolist() for row in found]


def truncated_probabilities(
    logits: Array,  # [..., V]
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    **chain: Any,
) -> F64:  # [..., V]
    """softmax(z) on the top_k tokens, largest z first and of equal ones the smaller token, then on
    the fewest of these whose share of their mass reaches top_p, then on those of at least min_p
    times the largest's probability, renormalised."""
    z = logits_chain(logits, **chain)
    p = probabilities(logits, **chain)
    out = np.zeros_like(p)
    for row in np.ndindex(z.shape[:-1]):
        order = np.argsort(-z[row], kind="stable")[:top_k]
        share = np.cumsum(p[row][order]) / p[row][order].sum()
        if top_p is not None:
            order = order[: int(np.searchsorted(share, top_p)) + 1]
        order = order[p[row][order] >= (min_p or 0.0) * p[row].max()]
        out[row][order] = p[row][order] / p[row][order].sum()
    return out
