"""A student beside a teacher on a device: torch's operations on tiles, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import reference  # noqa: E402
from logitless.backends.row_kernels import tensor_divergence  # noqa: E402
from tests.support.device.devices import Device  # noqa: E402
from tests.support.teacher_cases import (  # noqa: E402
    CHAINS,
    EXTRAS,
    INF,
    KINDS,
    Call,
    beta_of,
)
from tests.support.tolerances import assert_values  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several to a tile."""
    monkeypatch.setattr(tensor_divergence, "PIECE", 9000)


def there(call: Call, device: Device) -> Call:
    """The call's tensors on the device."""
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight", "mask", "g"):
        setattr(call, name, getattr(call, name).to(device.name))
    for options in (call.student, call.teacher):
        for name, value in options.items():
            options[name] = value.to(device.name) if isinstance(value, torch.Tensor) else value
    return call


def check(out: ll.Divergence, truth: dict[str, Any], plain: ll.Divergence) -> None:
    for name, value in {**out._asdict(), **out.extras}.items():
        if name != "extras":
            other = {**plain._asdict(), **plain.extras}[name]
            assert_values(value.cpu(), truth[name], torch.float32, plain=other.cpu())


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_heads(device: Device, dtype: Any, kind: str, chain: str) -> None:
    host, call = Call(dtype, kind, chain), there(Call(dtype, kind, chain), device)
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    given = {"extras": EXTRAS, **call.options}
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, **given, backend=device.backend,
        logits_dtype=torch.float32, memory_budget="1MiB",
    )  # fmt: skip
    call.loss(out).backward()
    logits = call.hidden.float() @ call.weight.float().T
    others = call.teacher_hidden.float() @ call.teacher_weight.float().T
    plain = ll.divergence(logits, others, call.mask, backend="torch", **given)
    check(out, host.oracle(reference.linear_divergence, *host.heads), plain)
    truth = host.oracle(reference.linear_divergence_backward, *host.heads, **host.upstream())
    for x, y in zip((hidden.grad, weight.grad), truth[:2], strict=True):
        assert x is not None
        device.assert_gradients(x, y, scale=10 * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_logits(device: Device, dtype: Any, kind: str, chain: str) -> None:
    host, call = Call(dtype, kind, chain), there(Call(dtype, kind, chain), device)
    given = {"extras": EXTRAS, **call.options}
    one, other = host.hidden @ host.weight.T, host.teacher_hidden @ host.teacher_weight.T
    logits, others = one.to(device.name).requires_grad_(), other.to(device.name)
    out = ll.divergence(logits, others, call.mask, backend=device.backend, **given)
    call.loss(out).backward()
    plain = ll.divergence(logits.detach(), others, call.mask, backend="torch", **given)
    check(out, host.oracle(reference.divergence, one, other), plain)
    truth, _ = host.oracle(reference.divergence_backward, one, other, **host.upstream())
    assert logits.grad is not None
    device.assert_gradients(logits.grad, truth, scale=4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_mass(device: Device, kind: str) -> None:
    """The CPU's values and gradients, infinite ones among them."""
    found = []
    for name, backend in (("cpu", "cpu"), (device.name, device.backend)):
        p = torch.tensor([[0.3, 1.0, -INF, 0.5]], device=name, requires_grad=True)
        q = torch.tensor([[0.1, 0.2, -INF, -INF]], device=name)
        for a, b in ((p, q), (q.clone().requires_grad_(), p.detach())):
            out = ll.divergence(a, b, kind=kind, beta=beta_of(kind), backend=backend)
            (gradient,) = torch.autograd.grad(out.divergence.sum(), a)
            found.append((out.divergence.detach().cpu(), gradient.cpu()))
    for ours, expected in zip(found[2:], found[:2], strict=True):
        for x, y in zip(ours, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)


BAD = {
    "row 1: its logits hold a NaN": (0, float("nan")),
    r"row 1: its logits hold a \+inf": (0, INF),
    "row 1: its logits|row 1: it has no finite logit": (0, -INF),
    "row 1: its teacher's logits hold a .inf, a NaN, or no finite one": (1, float("nan")),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("message", BAD)
def test_bad_rows(
    device: Device, message: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named where they count, and not read where the mask is false."""
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    which, value = BAD[message]
    both = [torch.zeros(3, 7, device=device.name) for _ in range(2)]
    both[which][1] = value
    mask = torch.tensor([True, not masked, True], device=device.name)
    if masked:
        out = ll.divergence(*both, mask, backend=device.backend)
        assert out.divergence.tolist() == [0.0] * 3
        return
    with pytest.raises(ValueError, match=message):
        ll.divergence(*both, mask, backend=device.backend)


def test_float64_is_refused(device: Device) -> None:
    x = torch.zeros(2, 5, dtype=torch.float64, device=device.name)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match="float32"):
        ll.divergence(x, x, backend=device.backend)
