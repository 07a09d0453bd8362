"""How the tests of sampling draw and judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import logitless as ll


def draw(h: torch.Tensor, w: torch.Tensor, n: int, **options: Any) -> torch.Tensor:
    """n draws from the first row of h, as n rows with ids of their own."""
    rows = h[:1].expand(n, -1).contiguous()
    return ll.linear_sample(rows, w, seed=11, step=3, row_ids=torch.arange(n), **options).token


def chi_squared(token: torch.Tensor, p: Any) -> float:
    """Standardised chi-squared, near N(0, 1) if tokens come from p.

    Neighbouring tokens are pooled into cells that expect about 20 draws or more.
    """
    n = len(token)
    counts = np.bincount(token.numpy(), minlength=len(p)).astype(float)
    assert counts[p == 0].sum() == 0, "drew a token of probability zero"
    cell = np.floor(np.cumsum(p) * n / 20).astype(int)
    _, cell = np.unique(cell, return_inverse=True)
    expected, observed = np.bincount(cell, p * n), np.bincount(cell, counts)
    # tokens of no probability may form a cell
    expected, observed = expected[expected > 0], observed[expected > 0]
    dof = len(expected) - 1
    if dof == 0:
        return 0.0
    return float((((observed - expected) ** 2 / expected).sum() - dof) / (2 * dof) ** 0.5)


def total_variation(token: torch.Tensor, p: Any, simulations: int = 100) -> float:
    """Standardised distance between the drawn frequencies and p: beside that of NumPy's draws."""
    n, rng = len(token), np.random.default_rng(0)
    p = p / p.sum()
    mine = np.abs(np.bincount(token.numpy(), minlength=len(p)) / n - p).sum()
    others = np.array([np.abs(rng.multinomial(n, p) / n - p).sum() for _ in range(simulations)])
    return float((mine - others.mean()) / others.std())
