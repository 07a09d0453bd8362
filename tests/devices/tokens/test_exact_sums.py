"""The exact sums and means of a device's token kernels against Python's integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitless.backends.token_kernels.torch_sums import DIGITS
from logitless.loss.evaluate.make_tokens import make_tokens
from tests.support.device.devices import Device
from tests.support.device.exact_digits import (
    full_digits,
    halves,
    of_values,
    random_digits,
    rounded,
    whole,
)


def tokens_of(device: Device, kernels: Any, mask: Tensor) -> Any:
    (there,) = device.put(mask)
    values = torch.zeros(len(mask), dtype=torch.float64, device=device.name)
    return make_tokens(values, values, there, kernels=kernels)


def means_of(device: Device, kernels: Any, digits: Tensor, count: int) -> list[float]:
    """Of sums [m, DIGITS] that the ranks have, two in each call."""
    tokens, found = tokens_of(device, kernels, torch.ones(1, dtype=torch.bool)), []
    for pair in digits.split(2):
        both = torch.cat([pair, pair])[:2]
        (words,) = device.put(torch.cat([both.flatten(), torch.tensor([count])]))
        means = kernels.exact_means(tokens, tokens.logp, tokens.logp, lambda _, words=words: words)
        found += [means.first.item(), means.second.item()][: len(pair)]
    return found


@pytest.mark.parametrize("count", [1, 3, 77, 2**31 - 1])
@pytest.mark.parametrize("most", [2, 2**31 + 1, 2**62])
def test_means_round_once(device: Device, kernels: Any, count: int, most: int) -> None:
    digits = random_digits(count + most, 11, most)
    expected = [rounded(whole(row), count) for row in digits]
    assert means_of(device, kernels, digits, count) == expected


@pytest.mark.parametrize("count", [1, 77, 2**31 - 1])
def test_full_digits(device: Device, kernels: Any, count: int) -> None:
    digits = full_digits(6)
    expected = [rounded(whole(row), count) for row in digits]
    assert means_of(device, kernels, digits, count) == expected


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_halves_go_to_even(device: Device, kernels: Any, more: int) -> None:
    """Of normal and of subnormal numbers; what is far below tells which side it is."""
    digits = halves((-1075, -1070, 0), (1, 2**53 + 1, 2**53 + 3), more)
    expected = [rounded(whole(row), 1) for row in digits]
    assert means_of(device, kernels, digits, 1) == expected
    assert means_of(device, kernels, digits * 3, 3) == expected


def test_none_and_too_much(device: Device, kernels: Any) -> None:
    digits = torch.zeros(2, DIGITS, dtype=torch.int64)
    assert means_of(device, kernels, digits, 0) == [0.0, 0.0]
    digits[1, 66] = -1
    assert means_of(device, kernels, digits, 1) == [0.0, -math.inf]
    assert means_of(device, kernels, digits, 2) == [0.0, -(2.0**1023)]


def test_digits_are_the_sum(device: Device, kernels: Any) -> None:
    """Of every magnitude, subnormal numbers too; what does not count is not looked at."""
    rng, seen = np.random.default_rng(3), []
    bits = rng.integers(-(2**63), 2**63, (2, 1100), dtype=np.int64)
    bits[1] >>= 11
    values = torch.from_numpy(bits).view(torch.float64)
    values = torch.where(values.isfinite(), values, 0.5)
    mask = torch.from_numpy(rng.random(1100) < 0.9)
    values[:, ~mask] = float("nan")

    def looked_at(words: Tensor) -> Tensor:
        seen.append(words.cpu().clone())
        return words

    kernels.exact_means(tokens_of(device, kernels, mask), *device.put(*values), looked_at)
    (words,) = seen
    assert words[-1] == mask.sum()
    for row, found in zip(values, words[:-1].view(2, DIGITS), strict=True):
        assert whole(found) == of_values(row[mask].tolist())
