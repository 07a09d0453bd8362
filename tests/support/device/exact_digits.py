"""Sums in digits as Python's integers, whose division rounds once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from logitless.backends.token_kernels.torch_sums import DIGITS, LOWEST


def whole(digits: torch.Tensor) -> int:
    """The sum in units of 2^LOWEST."""
    return sum(int(x) << (32 * i) for i, x in enumerate(digits.tolist()))


def rounded(total: int, count: int) -> float:
    try:
        return total / (count << -LOWEST)
    except OverflowError:
        return math.copysign(math.inf, total)


def of_values(values: list[float]) -> int:
    """The sum of these in units of 2^LOWEST."""
    return sum((a << -LOWEST) // b for a, b in (x.as_integer_ratio() for x in values))


def random_digits(seed: int, rows: int, most: int) -> torch.Tensor:
    """Of sums of all sizes, with digits that cancel, or that carry all the way up."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(-most, most, (rows, DIGITS), endpoint=True)
    digits[np.arange(DIGITS) >= rng.integers(0, DIGITS - 1, (rows, 1))] = 0
    digits[rng.random(digits.shape) < rng.random((rows, 1))] = 0
    digits[: rows // 10, :60] = most
    return torch.from_numpy(digits)


def full_digits(rows: int) -> torch.Tensor:
    """As large as those of 2^31 numbers, and of a sum that is far smaller than its topmost: carried
    once, 1 is followed by three of -2^32 + 2."""
    rng = np.random.default_rng(rows)
    digits = np.zeros((rows, DIGITS), np.int64)
    digits[:, :20] = rng.integers(0, 2**32, (rows, 20))
    digits[:, 20:23], digits[:, 23] = -(2**31 - 2) * 2**32 - 2**31, 2**31 - 1
    return torch.from_numpy(digits * rng.choice([-1, 1], (rows, 1)))


def halves(lows: tuple[int, ...], mantissas: tuple[int, ...], more: int) -> torch.Tensor:
    """Numbers mantissa * 2^low of both signs, and so many units of 2^LOWEST more."""
    rows = []
    for low, mantissa, sign in itertools.product(lows, mantissas, (-1, 1)):
        total = sign * ((mantissa << low - LOWEST) + more)
        rows.append([total >> 32 * i & 2**32 - 1 for i in range(DIGITS - 1)])
        rows[-1].append(total >> 32 * (DIGITS - 1))
    return torch.tensor(rows)
