"""Options at the ends of float32 through device kernels: CUDA, Triton, and their stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import logitless as ll
from tests.support import scaling_cases as cases
from tests.support.devices import Place


@pytest.mark.parametrize("name", cases.EXACT)
def test_exact(place: Place, name: str) -> None:
    case = cases.EXACT[name]
    z, t, *g = cases.problem(case, torch.float32)
    leaf, targets, *there = place.put(z, t, *g)
    options = {k: v.to(place.device) if torch.is_tensor(v) else v for k, v in case.options.items()}
    leaf.requires_grad_()
    stats = ll.token_stats(leaf, targets, backend=place.backend, **options)
    loss = (stats.logp * there[0] + stats.entropy * there[1]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    cases.assert_exact(case, z, stats, gradient, *cases.truth(case, z, t, *g))


@pytest.mark.parametrize("name", cases.REFUSED)
def test_refused(place: Place, name: str) -> None:
    options, message = cases.REFUSED[name]
    z, t = place.put(torch.randn(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(z, t, backend=place.backend, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saturated_softcaps(place: Place, dtype: torch.dtype) -> None:
    z, t, u = cases.saturated(dtype)
    if place == Place("triton", "cpu") and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts bfloat16 off where the hardware rounds")
    leaf, targets = place.put(z, t)
    leaf.requires_grad_()
    ll.token_stats(leaf, targets, backend=place.backend, **cases.SATURATED).logp.sum().backward()
    cases.assert_slopes(z, t, u, leaf.grad)


BAD: dict[str, tuple[dict[str, Any], float, str]] = {
    "temperature": (
        {"temperature": [1.0, 1e-40, 1e40]}, 1.0,
        "row 1: its temperature must be finite and > 0, in float32's range",
    ),
    "temperature of a softcap": (
        {"temperature": [1.0, 1e-12, 1e18], "softcap": 1e20}, 1.0,
        "row 1: its temperature must be finite and > 0, in float32's range",
    ),
    "overflow": (
        {"logit_scale": 1e30}, 1e30,
        "row 1: its logits times logit_scale / temperature overflow float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_only_an_option_makes_bad(
    place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, size, message = BAD[kind]
    z, t = torch.zeros(3, 6), torch.tensor([0, 1, 2])
    z[1:] = torch.linspace(0.5, 1, 6) * size
    z, t = place.put(z, t)
    there = {
        k: torch.tensor(v, dtype=torch.float64, device=place.device) if type(v) is list else v
        for k, v in options.items()
    }
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(z, t, backend=place.backend, **there)
    mask = t < 1
    assert ll.token_stats(z, t, mask=mask, backend=place.backend, **there).logp.isfinite().all()
