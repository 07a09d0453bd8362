"""The law of entropy and reward, R = -a * exp(H) + b: what reaching zero entropy would buy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless.backends.token_kernels.arrays import to_numpy
from logitless.inputs.arrays import framework
from logitless.inputs.checks import is_tensor, scalar, shown
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array

# Beyond these, squares of the two are no numbers any more.
HIGHEST, LARGEST = 300.0, 1e150


class EntropyLaw(NamedTuple):
    """R = -a * exp(H) + b, H in nats."""

    a: float
    b: float
    # R at H = 0: b - a
    ceiling: float
    # share of the reward's variance that the law explains
    r2: float
    # 95% confidence interval of the ceiling
    interval: tuple[float, float]

    def predict(self, entropy: Any) -> Any:
        """The reward that the law gives for an entropy (a number or an array)."""
        value = self.b - self.a * np.exp(entropy)
        return float(value) if np.ndim(value) == 0 else value


@public
def fit_entropy_law(
    entropy: Array | Sequence[float],  # [n] nats
    reward: Array | Sequence[float],  # [n]
) -> EntropyLaw:
    """Least squares of R = -a * exp(H) + b over training steps. In plain code:

        slope, b = np.polyfit(np.exp(entropy), reward, 1)
        a, ceiling = -slope, b + slope

    The interval is the usual one of a regression line at H = 0: ceiling +- t * s * sqrt(1/n + (1 -
    mean x)^2 / Sxx) with x = exp(H), s^2 the residual variance on n - 2 degrees of freedom and t
    the 97.5% point of Student's t, found by bisection on its distribution function, which is a
    finite trigonometric sum for whole degrees of freedom. It takes the steps as independent, which
    training steps are not: read it as a lower bound of the doubt. A constant reward is fitted
    exactly, r2 = 1.

    Raises ValueError for fewer than 3 points, values that are not finite, or an entropy that never
    changes. Paper: arXiv:2505.22617.
    """
    h, y = _points("entropy", entropy, HIGHEST), _points("reward", reward, LARGEST)
    if h.size != y.size or h.size < 3:
        raise ValueError(
            f"entropy and reward must be of one length >= 3, got {h.size} and {y.size} values"
        )
    x = np.exp(h)
    dx, dy = x - x.mean(), y - y.mean()
    spread = float(dx @ dx)
    if spread == 0.0:
        raise ValueError(
            f"entropy must take more than one value of exp(entropy), got {h.min()} to {h.max()}"
        )
    slope = float(dx @ dy) / spread
    intercept = float(y.mean() - slope * x.mean())
    residual = dy - slope * dx
    total, unexplained = float(dy @ dy), float(residual @ residual)
    ceiling = intercept + slope
    error = math.sqrt(unexplained / (h.size - 2) * (1 / h.size + (1 - x.mean()) ** 2 / spread))
    half = student_t(0.95, h.size - 2) * error
    return EntropyLaw(
        a=-slope,
        b=intercept,
        ceiling=ceiling,
        r2=1.0 - unexplained / total if total > 0 else 1.0,
        interval=(ceiling - half, ceiling + half),
    )


def student_t(level: float, dof: int) -> float:
    """t with P(|T| < t) = level for Student's T of whole degrees of freedom."""
    low, high = 0.0, math.pi / 2
    # t = sqrt(dof) * tan(angle); 60 halvings leave 1e-18 of the angle
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _two_sided(angle, dof) < level else (low, angle)
    return math.sqrt(dof) * math.tan(low)


def _two_sided(angle: float, dof: int) -> float:
    """P(|T| < sqrt(dof) * tan(angle)): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = dof % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    # odd: cos + 2/3 cos^3 + 2/3 4/5 cos^5 ...; even: 1 + 1/2 cos^2 + 1/2 3/4 cos^4 ...
    for power in range(1 + odd, dof, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _points(name: str, values: Array | Sequence[float], largest: float) -> npt.NDArray[np.float64]:
    if is_tensor(values):
        given: dict[str, Any] = {name: values}
        framework("fit_entropy_law", **given)
        values = to_numpy(name, values)
    elif not isinstance(values, (np.ndarray, Sequence)) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a vector of numbers, got {shown(values)}")
    if isinstance(values, Sequence):
        numbers = [scalar(x) for x in values]
        odd = next((x for x, number in zip(values, numbers, strict=True) if number is None), None)
        if None in numbers:
            raise ValueError(f"{name} must be a vector of numbers, got {shown(odd)} in it")
        # a larger int has no float
        values = np.array(
            [math.inf if abs(x) > LARGEST else float(x) for x in numbers if x is not None]
        )
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iuf"):
        raise ValueError(f"{name} must be a vector of numbers, got {shown(values)}")
    points = values.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(points) <= largest))
    if bad.size:
        raise ValueError(
            f"{name} must be finite and at most {largest}, got {points[bad[0]]} at [{bad[0]}]"
        )
    return points
