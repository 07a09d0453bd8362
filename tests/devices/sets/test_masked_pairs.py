"""Divergences within sampling masks on a device: the oracle's numbers, and nothing that waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.backends.row_kernels.errors import raise_now
from tests.support import mask_cases
from tests.support.device.devices import Device
from tests.support.device.waits import NothingIsRead
from tests.support.plans import machine
from tests.support.teacher_cases import ANYONE, EXTRAS, INF, KINDS, Call, V, beta_of, named
from tests.support.tolerances import assert_values

SETS = [kind for kind in mask_cases.KINDS if kind != "target"]


def there(call: Call, device: Device) -> Call:
    """The call's tensors on the device."""
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight", "mask", "g"):
        setattr(call, name, getattr(call, name).to(device.name))
    for options in (call.student, call.teacher):
        for name, value in options.items():
            options[name] = value.to(device.name) if isinstance(value, torch.Tensor) else value
    return call


def check(out: ll.Divergence, truth: dict[str, Any], plain: ll.Divergence) -> None:
    others = named(plain)
    for name, value in named(out).items():
        by_torch = others[name].detach().cpu()
        assert_values(value.detach().cpu(), truth[name], torch.float32, plain=by_torch)


def head_of(call: Call, frozen: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """hidden and weight, and those of them that have gradients."""
    head = [x.clone().requires_grad_() for x in call.heads[:2]]
    head[1].requires_grad_(not frozen)
    return head, head[:1] if frozen else head


@pytest.mark.parametrize("way", ["gathered", "dense"])
@pytest.mark.parametrize(("kind", "chain"), [*((kind, "both") for kind in KINDS), ("jsd", "plain")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_heads(
    device: Device, dtype: Any, kind: str, chain: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with and without a set, masked ones among them."""
    machine(monkeypatch, gathered=1e-9 if way == "dense" else 1e30)
    host, call = Call(dtype, kind, chain), there(Call(dtype, kind, chain), device)
    # the gradients of both kinds of rows are rounded to bfloat16 before they are added
    for which in ("few", "borders", *(["mixed"] if dtype == torch.float32 else [])):
        ids = mask_cases.sets(which, 3, ANYONE, V)
        given = {"extras": EXTRAS, "sampling_mask": ll.SamplingMask.from_lists(ids)}
        # of the interpreter each row of d_weight takes milliseconds
        head, leaves = head_of(call, frozen=device.interpreted and way == "gathered")
        out = ll.linear_divergence(
            *head, *call.heads[2:], call.mask, **given, **call.options,
            backend=device.backend, logits_dtype=torch.float32,
        )  # fmt: skip
        logits = call.hidden.float() @ call.weight.float().T
        others = call.teacher_hidden.float() @ call.teacher_weight.float().T
        plain = ll.divergence(logits, others, call.mask, backend="torch", **given, **call.options)
        check(out, host.oracle(reference.linear_divergence, *host.heads, sets=ids), plain)
        ours = torch.autograd.grad(call.loss(out), leaves)
        truth = host.oracle(
            reference.linear_divergence_backward, *host.heads, sets=ids, **host.upstream()
        )
        for x, y in zip(ours, truth[:2], strict=len(leaves) == 2):
            device.assert_gradients(x, y, scale=10 * max(1.0, float(np.abs(y).max())))


CHAINS = [("reverse_kl", "student"), ("forward_kl", "teacher"), ("jsd", "student")]


@pytest.mark.parametrize(("kind", "chain"), [*((kind, "both") for kind in KINDS), *CHAINS])
def test_given_logits(device: Device, kind: str, chain: str) -> None:
    host = Call(torch.float32, kind, chain)
    call = there(Call(torch.float32, kind, chain), device)
    one, other = host.hidden @ host.weight.T, host.teacher_hidden @ host.teacher_weight.T
    others = other.to(device.name)
    for which in SETS:
        ids = mask_cases.sets(which, 3, ANYONE, V)
        given = {**call.options, "sampling_mask": ll.SamplingMask.from_lists(ids)}
        logits = one.to(device.name, copy=True).requires_grad_()
        out = ll.divergence(
            logits, others, call.mask, extras=EXTRAS, backend=device.backend, **given
        )
        plain = ll.divergence(
            logits.detach(), others, call.mask, extras=EXTRAS, backend="torch", **given
        )
        check(out, host.oracle(reference.divergence, one, other, sets=ids), plain)
        (ours,) = torch.autograd.grad(call.loss(out), logits)
        truth, _ = host.oracle(
            reference.divergence_backward, one, other, sets=ids, **host.upstream()
        )
        device.assert_gradients(ours, truth, scale=4.0 * max(1.0, float(np.abs(truth).max())))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_mass(device: Device, kind: str) -> None:
    """The CPU's values and gradients within a set, infinite ones among them."""
    found = []
    mask = ll.SamplingMask.from_lists([[0, 2, 3, 5], [1, 4]])
    for name, backend in (("cpu", "cpu"), (device.name, device.backend)):
        p = torch.tensor([[0.3, 1.0, -INF, 0.5, 0.1, 0.2]] * 2, device=name, requires_grad=True)
        q = torch.tensor([[0.1, 0.2, -INF, -INF, 2.0, 0.7]] * 2, device=name)
        for a, b in ((p, q), (q.clone().requires_grad_(), p.detach())):
            out = ll.divergence(
                a, b, kind=kind, beta=beta_of(kind), sampling_mask=mask, backend=backend
            )
            (gradient,) = torch.autograd.grad(out.divergence.sum(), a)
            found.append((out.divergence.detach().cpu(), gradient.cpu()))
    for ours, expected in zip(found[2:], found[:2], strict=True):
        for x, y in zip(ours, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "weight_grad"), [*((kind, "dense") for kind in KINDS), (KINDS[0], "rows")]
)
def test_the_host_waits_for_nothing(device: Device, kind: str, weight_grad: str) -> None:
    call = there(Call(torch.float32, kind, "plain"), device)
    mask = mask_cases.mask_of("few", 3, ANYONE, V)
    head, leaves = head_of(call, frozen=device.interpreted)
    raise_now(head[0].device)
    with NothingIsRead():
        out = ll.linear_divergence(
            *head, *call.heads[2:], sampling_mask=mask, weight_grad=weight_grad,
            backend=device.backend, **call.options,
        )  # fmt: skip
        found = torch.autograd.grad(call.loss(out), leaves)
    assert all(x.to_dense().isfinite().all() for x in found)


@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
def test_a_bad_row_is_named(device: Device, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the set has the bad logit, and not where it is outside."""
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    both = [torch.zeros(3, 7, device=device.name) for _ in range(2)]
    both[side][1, 4] = float("nan")
    good, bad = (ll.SamplingMask.from_lists([[1, 2], ids, [3]]) for ids in ([0, 5, 6], [0, 4, 6]))
    out = ll.divergence(*both, sampling_mask=good, backend=device.backend)
    assert out.divergence.tolist() == [0.0] * 3
    words = ("its logits hold a NaN", "its teacher's logits hold a .inf, a NaN")[side]
    with pytest.raises(ValueError, match=f"row 1: {words}"):
        ll.divergence(*both, sampling_mask=bad, backend=device.backend)
