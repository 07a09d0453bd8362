"""The entropy law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from logitless.reference.rows import Array


def fit_entropy_law(entropy: Array, reward: Array) -> dict[str, Any]:
    """Least squares of R = -a * exp(H) + b; the ceiling b - a (H = 0) with its 95% interval."""
    x, y = np.exp(np.asarray(entropy, np.float64)), np.asarray(reward, np.float64)
    n = len(x)
    design = np.stack([-x, np.ones(n)], axis=1)
    gram = np.linalg.inv(design.T @ design)
    a, b = gram @ design.T @ y
    residual = y - design @ np.array([a, b])
    at_zero = np.array([-1.0, 1.0])
    variance = residual @ residual / (n - 2)
    half = student_t_975(n - 2) * math.sqrt(variance * (at_zero @ gram @ at_zero))
    total = float(np.sum((y - y.mean()) ** 2))
    r2 = 1.0 - float(residual @ residual) / total if total > 0 else 1.0
    return {"a": a, "b": b, "ceiling": b - a, "r2": r2, "interval": (b - a - half, b - a + half)}


def student_t_975(dof: int) -> float:
    """The 97.5% point of Student's t: bisection on the density integrated by Simpson's rule."""
    log_scale = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        x = np.linspace(0.0, middle, 2001)
        density = np.exp(log_scale - (dof + 1) / 2 * np.log1p(x * x / dof))
        weights = np.where(np.arange(2001) % 2, 4.0, 2.0)
        weights[[0, -1]] = 1.0
        area = float(weights @ density) * middle / 2000 / 3
        low, high = (middle, high) if area < 0.475 else (low, middle)
    return low
