"""Exact sums and means in torch's operations against Python's integers, whose division rounds once.
The tests of device kernels compare all kernels with them, on fewer sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from logitless.backends.token_kernels.torch_sums import DIGITS, exact_digits, means_of
from tests.support.device.exact_digits import (
    full_digits,
    halves,
    of_values,
    random_digits,
    rounded,
    whole,
)


def check(digits: torch.Tensor, count: int) -> None:
    found = means_of(digits, torch.tensor(count)).tolist()
    assert found == [rounded(whole(row), count) for row in digits]


@pytest.mark.parametrize("count", [1, 2, 3, 77, 10**6, 2**31 - 1])
@pytest.mark.parametrize("most", [2, 2**31 - 2, 2**31 + 1, 2**62])
def test_means_round_once(count: int, most: int) -> None:
    check(random_digits(count + most, 400, most), count)


@pytest.mark.parametrize("count", [1, 77, 2**31 - 1])
def test_full_digits(count: int) -> None:
    check(full_digits(50), count)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_halves_go_to_even(more: int) -> None:
    """Of normal and of subnormal numbers; what is far below tells which side it is."""
    # 2^-1075 is half of the least number
    lows = (-1075, -1070, -60, 0, 900)
    digits = halves(lows, (1, 2**20 + 1, 2**53 + 1, 2**53 + 3, 2**54 - 1), more)
    check(digits, 1)
    check(digits * 3, 3)


def test_none_and_too_much() -> None:
    digits = torch.zeros(2, DIGITS, dtype=torch.int64)
    digits[1, 66] = -1
    assert means_of(digits, torch.tensor(1)).tolist() == [0.0, -math.inf]
    assert means_of(digits, torch.tensor(2)).tolist() == [0.0, -(2.0**1023)]
    assert means_of(digits, torch.tensor(0)).tolist() == [0.0, 0.0]


def test_digits_are_the_sum() -> None:
    """Of every magnitude, subnormal numbers too; what does not count is not looked at."""
    rng = np.random.default_rng(3)
    bits = rng.integers(-(2**63), 2**63, (3, 1000), dtype=np.int64)
    bits[2] >>= 11
    values = torch.from_numpy(bits).view(torch.float64)
    counted = values.isfinite().all(0) & torch.from_numpy(rng.random(1000) < 0.9)
    for row, found in zip(values, exact_digits(values, counted), strict=True):
        assert whole(found) == of_values(row[counted].tolist())
