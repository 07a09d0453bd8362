"""exp and expm1 by additions and multiplications, which the core has as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.backends.token_kernels.torch_numbers import exp_of, expm1_of


@pytest.mark.parametrize("size", [1e-300, 1e-9, 1e-3, 0.3, 0.36, 0.7, 1.2, 5.0, 40.0, 699.0])
def test_within_an_ulp(size: float) -> None:
    """Of longer floats than they are computed in."""
    x = np.random.default_rng(0).uniform(-size, size, 20_000)
    for ours, plain, most in ((exp_of, np.exp, 1.0), (expm1_of, np.expm1, 1.1)):
        truth = plain(x.astype(np.longdouble))
        far = abs(ours(torch.from_numpy(x)).numpy() - truth)
        assert (far / np.spacing(abs(truth).astype(np.float64))).max() < most


def test_beyond_the_limit() -> None:
    x = torch.tensor(
        [-torch.inf, -750.0, -700.0, -0.0, 0.0, 700.0, 705.0, 750.0, torch.inf]
    ).double()
    for ours, plain in ((exp_of, torch.exp), (expm1_of, torch.expm1)):
        assert torch.equal(ours(x), plain(x))
        assert ours(x * torch.nan).isnan().all()


def test_division_rounds_once() -> None:
    """A number of the host by a tensor and the reverse."""
    x = np.random.default_rng(1).uniform(1, 99, 1000)
    a, b = torch.from_numpy(x), 7.3
    assert (TorchArrays.divided(b, a).numpy() == b / x).all()
    assert (TorchArrays.divided(a, b).numpy() == x / b).all()
    assert TorchArrays.divided(b, 2.0) == b / 2.0
    # torch's own is not the same
    assert ((b / a).numpy() != b / x).any()
