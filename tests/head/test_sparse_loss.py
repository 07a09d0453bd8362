"""linear_policy_loss with tail_mass > 0: every loss, near the exact gradients, with its metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.ops.head.policy_op import SUPPORT_METRICS
from tests.support.sparse_cases import off, problem

B, T = 4, 9


def arguments(seed: int, dtype: torch.dtype) -> dict[str, Any]:
    h, w, t = problem(seed, B * T, 40, 4200, dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        stats = ll.linear_token_stats(h, w, t)
        logp, entropy = (x.view(B, T) for x in (stats.logp, stats.entropy))
    mask = torch.rand(B, T, generator=g) > 0.2
    mask[0] = False
    return {
        "hidden": h, "weight": w, "targets": t.view(B, T),
        "old_logp": logp + 0.1 * torch.randn(B, T, generator=g),
        "advantages": torch.randn(B, T, generator=g), "mask": mask,
        "ref_logp": logp + 0.2 * torch.randn(B, T, generator=g),
        "rollout_logp": logp + 0.05 * torch.randn(B, T, generator=g),
        "token_ids": torch.arange(B * T).view(B, T),
        "old_entropy": entropy * (1 + 0.1 * torch.arange(B * T).view(B, T).remainder(3).sub(1)),
    }  # fmt: skip


def run(spec: Any, a: dict[str, Any], **options: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
    a = dict(a)
    h, w = a.pop("hidden"), a.pop("weight")
    data = [a.pop(k) for k in ("targets", "old_logp", "advantages", "mask")]
    out = ll.linear_policy_loss(h.view(B, T, -1), w, *data, spec, **a, **options)
    return out, torch.autograd.grad(out.loss, (h, w), retain_graph=False)


@pytest.mark.parametrize("name", list(ll.presets))
def test_every_preset(name: str) -> None:
    """Sequence-level and selecting losses included: no row needs to be a chunk of its own."""
    a = arguments(1, torch.float32)
    spec = ll.presets[name]
    extra: dict[str, Any] = {}
    if spec.control is not None and spec.control.selects:
        data = (a["old_logp"], a["advantages"], a["mask"], spec)
        extra["batch"] = ll.batch_stats(
            *data, old_logp=a["old_logp"], entropy=torch.ones(B, T), token_ids=a["token_ids"],
            entropy_change=torch.linspace(-1, 1, B * T).view(B, T) if name == "clip_v" else None,
            seed=0, step=0,
        )  # fmt: skip
    exact, right = run(spec, a, **extra)
    ours, close = run(spec, a, tail_mass=1e-3, tail_entries=64, **extra)
    assert ours.loss == exact.loss
    assert torch.equal(ours.logp, exact.logp)
    assert torch.equal(ours.entropy, exact.entropy)
    for key, value in exact.metrics.items():
        np.testing.assert_array_equal(ours.metrics[key].numpy(), value.numpy())
    assert tuple(ours.metrics)[-4:] == SUPPORT_METRICS
    for a_, b_ in zip(close, right, strict=True):
        if float(b_.abs().max()) == 0:
            assert float(a_.abs().max()) == 0
        else:
            assert off(a_, b_) <= 3e-3


SPEC = ll.PolicyLossSpec(surrogate=ll.Clip(0.2, 0.2), aggregation="token-mean")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_bound_of_the_metrics(temperature: float) -> None:
    """Summed over rows, the error of d(logits) is within what the metrics say. Hidden is the
    identity, so d_weight is d(logits)."""
    n, vocab = 30, 4200
    g = torch.Generator().manual_seed(2)
    z = torch.randn(vocab, n, generator=g, dtype=torch.float64)
    z[torch.arange(n), torch.arange(n)] += 14.0 * temperature
    w, h = z.requires_grad_(), torch.eye(n, dtype=torch.float64)
    t = torch.arange(n)
    spec = replace(SPEC, entropy=ll.EntropyBonus(0.3))
    with torch.no_grad():
        old = ll.linear_token_stats(h, w, t, temperature=temperature).logp
    data = (h, w, t, old, torch.randn(n, generator=g), torch.ones(n, dtype=torch.bool), spec)
    found = []
    for tail in (0.0, 5e-2):
        out = ll.linear_policy_loss(*data, temperature=temperature, tail_mass=tail)
        found.append(torch.autograd.grad(out.loss, w)[0])
    l1 = (found[1] - found[0]).abs().sum(0)
    metrics = {k: float(v) for k, v in out.metrics.items()}
    assert metrics["actor/support_rows"] > 0.2
    assert 0 < float(l1.max()) <= metrics["actor/support_bound_max"] * (1 + 1e-6)
    assert float(l1.sum()) <= metrics["actor/support_bound_sum"] * (1 + 1e-6)
    assert 1 <= metrics["actor/support_kept"] <= 513


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("scaled", [1.0, 1024.0])
def test_dtypes_and_loss_scaling(dtype: torch.dtype, scaled: float) -> None:
    """float16 with a loss scaler: what would be below its smallest number is not lost."""
    a = arguments(3, dtype)
    results = []
    for tail in (0.0, 1e-3):
        copy = dict(a)
        h, w = copy.pop("hidden"), copy.pop("weight")
        data = [copy.pop(k) for k in ("targets", "old_logp", "advantages", "mask")]
        out = ll.linear_policy_loss(h.view(B, T, -1), w, *data, SPEC, tail_mass=tail)
        results.append(torch.autograd.grad(out.loss * scaled, (h, w)))
    for ours, right in zip(results[1], results[0], strict=True):
        assert ours.dtype == dtype
        assert off(ours, right) <= (1e-2 if dtype == torch.bfloat16 else 3e-3)


def test_only_rows_with_a_gradient_are_counted() -> None:
    a = arguments(4, torch.float32)
    a["advantages"][:, ::2] = 0.0
    a = {k: v for k, v in a.items() if k not in ("ref_logp", "rollout_logp", "token_ids")}
    out, (d_hidden, _) = run(SPEC, a, tail_mass=0.9)
    assert out.metrics["actor/support_rows"] > 0
    silent = (~a["mask"] | (a["advantages"] == 0)).view(-1)
    assert (d_hidden[silent] == 0).all()
    a["advantages"][:] = 0.0
    out, gradients = run(SPEC, a, tail_mass=0.9)
    assert {name: float(out.metrics[name]) for name in SUPPORT_METRICS} == {
        "actor/support_bound_max": 0, "actor/support_bound_sum": 0,
        "actor/support_rows": 1, "actor/support_kept": 0,
    }  # fmt: skip
    assert all((x == 0).all() for x in gradients)


def test_bias_and_every_link_of_the_chain() -> None:
    a = arguments(5, torch.float32)
    bias = (0.1 * torch.randn(4200)).requires_grad_()
    options: dict[str, Any] = {
        "bias": bias, "softcap": 30.0, "logit_scale": 0.9,
        "temperature": torch.full((B, T), 0.8),
    }  # fmt: skip
    h, w = a["hidden"], a["weight"]
    data = [a[k] for k in ("targets", "old_logp", "advantages", "mask")]
    results = []
    for tail in (0.0, 1e-3):
        out = ll.linear_policy_loss(h.view(B, T, -1), w, *data, SPEC, tail_mass=tail, **options)
        results.append(torch.autograd.grad(out.loss, (h, w, bias)))
    for ours, right in zip(results[1], results[0], strict=True):
        assert off(ours, right) <= 3e-3


def test_without_gradients_nothing_is_measured() -> None:
    a = arguments(6, torch.float32)
    data = [a[k] for k in ("targets", "old_logp", "advantages", "mask")]
    with torch.no_grad():
        out = ll.linear_policy_loss(
            a["hidden"].view(B, T, -1), a["weight"], *data, SPEC, tail_mass=1e-3
        )
    assert not out.loss.requires_grad
    assert np.isfinite(float(out.loss))


def test_opcheck_and_compile() -> None:
    a = arguments(7, torch.float32)
    data = [a[k] for k in ("targets", "old_logp", "advantages", "mask")]

    def call(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return ll.linear_policy_loss(h.view(B, T, -1), w, *data, SPEC, tail_mass=1e-3).loss

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = (a["hidden"], a["weight"])
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    right = torch.autograd.grad(call(*leaves), leaves)
    for x, y in zip(ours, right, strict=True):
        assert off(x, y) <= 1e-6
