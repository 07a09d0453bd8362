"""Options at the ends of float32 through device kernels: CUDA, Triton, and their stand-ins."""

from __future__ import annotations

import pytest
import torch

import logitless as ll
from tests.support import scaling_cases as cases
from tests.support.device.devices import Device


@pytest.mark.parametrize("name", cases.EXACT)
def test_exact(device: Device, name: str) -> None:
    case = cases.EXACT[name]
    z, t, *g = cases.problem(case, torch.float32)
    leaf, targets, *there = device.put(z, t, *g)
    options = {k: v.to(device.name) if torch.is_tensor(v) else v for k, v in case.options.items()}
    leaf.requires_grad_()
    stats = ll.token_stats(leaf, targets, backend=device.backend, **options)
    loss = (stats.logp * there[0] + stats.entropy * there[1]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    cases.assert_exact(case, z, stats, gradient, *cases.truth(case, z, t, *g))


@pytest.mark.parametrize("name", cases.REFUSED)
def test_refused(device: Device, name: str) -> None:
    options, message = cases.REFUSED[name]
    z, t = device.put(torch.randn(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(z, t, backend=device.backend, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saturated_softcaps(device: Device, dtype: torch.dtype) -> None:
    z, t, u = cases.saturated(dtype)
    if device == Device("triton", "cpu") and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts bfloat16 off where the hardware rounds")
    leaf, targets = device.put(z, t)
    leaf.requires_grad_()
    ll.token_stats(leaf, targets, backend=device.backend, **cases.SATURATED).logp.sum().backward()
    cases.assert_slopes(z, t, u, leaf.grad)
