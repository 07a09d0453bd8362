"""16-bit heads on a CPU without 16-bit products: float32 by default, 16 bits where asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from tests.support.heads import problem
from tests.support.plans import machine

NARROW = (torch.bfloat16, torch.float16)
Given = tuple[Tensor, Tensor, Tensor]


def statistics(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> list[Tensor]:
    stats = ll.linear_token_stats(h, w, t, **options)
    return [stats.logp, stats.entropy, *torch.autograd.grad(stats.logp.sum(), (h, w))]


def loss(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> list[Tensor]:
    old, mask = torch.full(t.shape, -3.0), torch.ones_like(t, dtype=torch.bool)
    advantages = torch.linspace(-1.0, 1.0, t.numel()).view(t.shape)
    out = ll.linear_policy_loss(h, w, t, old, advantages, mask, ll.presets["ppo"], **options)
    return [out.loss, out.logp, *torch.autograd.grad(out.loss, (h, w))]


def draws(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> list[Tensor]:
    rows = h.detach().flatten(0, -2)
    drawn = ll.linear_sample(rows, w, row_ids=torch.arange(len(rows)), seed=3, step=0, **options)
    return [drawn.token, drawn.logp, drawn.entropy]


def divergences(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> list[Tensor]:
    out = ll.linear_divergence(h, w, -h.detach(), w.detach(), **options)
    return [out.divergence, *torch.autograd.grad(out.divergence.sum(), (h, w))]


CALLS: dict[str, Callable[..., list[Tensor]]] = {
    "linear_token_stats": statistics, "linear_policy_loss": loss, "linear_sample": draws,
    "linear_divergence": divergences,
}  # fmt: skip


def heads(dtype: torch.dtype) -> Given:
    h, w, t = problem(1, 12, 16, 2100, dtype)
    return h.detach().requires_grad_(), w.detach().requires_grad_(), t


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_float32_is_the_default_where_products_are_slow(
    call: Callable[..., list[Tensor]], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = heads(dtype)
    asked = [call(*given, logits_dtype=wanted) for wanted in (dtype, torch.float32)]
    for slow, expected in ((False, asked[0]), (True, asked[1])):
        names = frozenset(("bfloat16", "float16") if slow else ())
        machine(monkeypatch, widened=lambda names=names: names)
        assert all(map(torch.equal, call(*given), expected))
    # 16-bit logits are others
    assert not torch.equal(asked[0][1], asked[1][1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_plan_says_so(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, widened=lambda: frozenset({"bfloat16"}))
    expected = "float32" if dtype == "bfloat16" else dtype
    assert ll.plan(64, 32, 5003, dtype).logits_dtype == expected
    assert ll.plan(64, 32, 5003, dtype, logits_dtype=dtype).logits_dtype == dtype
    # what is known of a GPU does not follow from this CPU
    assert ll.plan(64, 32, 5003, dtype, device="H200").logits_dtype == dtype


ASK = """
from logitless.backends.machine import CPU
print(*sorted(CPU.widened()))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86-64")
def test_a_cpu_with_avx2_alone_has_none() -> None:
    """Whatever this machine has: oneDNN is told to use no more."""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = subprocess.run(
        [sys.executable, "-c", ASK], env=env, check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == ["bfloat16", "float16"]


def test_two_heads_of_two_dtypes() -> None:
    """Each is multiplied in the dtype of its own logits."""
    h, w, _ = heads(torch.bfloat16)
    teacher = [x.detach().float() for x in (h * 0.5, w)]
    out = ll.linear_divergence(h, w, *teacher, logits_dtype=torch.float32)
    wide = [x.detach().float().requires_grad_() for x in (h, w)]
    expected = ll.linear_divergence(*wide, *teacher)
    torch.testing.assert_close(out.divergence, expected.divergence)
    ours, plain = (
        torch.autograd.grad(x.divergence.sum(), leaves)
        for x, leaves in ((out, (h, w)), (expected, wide))
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))
