"""A student beside a teacher on a device: against the oracle, and against the CPU's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import reference  # noqa: E402
from logitless.backends import registry  # noqa: E402
from logitless.backends.row_kernels.pair_states import merge_pair_states  # noqa: E402
from logitless.backends.row_kernels.rows import STATE, Rows  # noqa: E402
from logitless.ops.head.planner.cost import Strategy  # noqa: E402
from tests.support import plans  # noqa: E402
from tests.support.device.devices import Device  # noqa: E402
from tests.support.teacher_cases import (  # noqa: E402
    CHAINS,
    EXTRAS,
    INF,
    KINDS,
    Call,
    H,
    N,
    V,
    beta_of,
)
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16)


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


@pytest.mark.parametrize("budget", [None, "2MiB"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter(device: Device, kind: str, budget: Any) -> None:
    """Of the student's head: results and gradients of the merged weight's oracle."""
    host, call = Call(torch.float32, kind), there(Call(torch.float32, kind), device)
    g = torch.Generator().manual_seed(4)
    A, B = torch.randn(3, H, generator=g) / 4, torch.randn(V, 3, generator=g) / 4
    adapter = (*(x.to(device.name, copy=True).requires_grad_() for x in (A, B)), 0.5)
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    given = {"extras": EXTRAS, "adapter": adapter, **call.options}
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, backend=device.backend, memory_budget=budget,
        **given,
    )  # fmt: skip
    with torch.no_grad():
        plain = ll.linear_divergence(*call.heads, call.mask, backend="torch", **given)
    known = (A.numpy(), B.numpy(), 0.5)
    merged = reference.merged_weight(host.weight.numpy(), [known])
    heads = (host.hidden, torch.from_numpy(merged), *host.heads[2:])
    check(out, host.oracle(reference.linear_divergence, *heads), plain)
    d_hidden, d_merged, _ = host.oracle(
        reference.linear_divergence_backward, *heads, **host.upstream()
    )
    right = (d_hidden, d_merged, *reference.adapter_backward(d_merged, known))
    leaves = (hidden, weight, *adapter[:2])
    for x, y in zip(torch.autograd.grad(call.loss(out), leaves), right, strict=True):
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


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_values(device: Device, kind: str) -> None:
    """Along a random direction, of the oracle's values in float64."""
    host, call = Call(torch.float32, kind, "both"), there(Call(torch.float32, kind, "both"), device)
    one, other = host.hidden @ host.weight.T, host.teacher_hidden @ host.teacher_weight.T
    logits = one.to(device.name).requires_grad_()
    out = ll.divergence(
        logits, other.to(device.name), call.mask, backend=device.backend, **call.options
    )
    (ours,) = torch.autograd.grad(call.loss(out), logits)
    direction = torch.randn(one.shape, generator=torch.Generator().manual_seed(3))
    gd, ge = host.upstream().values()

    def loss(step: float) -> float:
        moved = one.double() + step * direction.double()
        truth = host.oracle(reference.divergence, moved, other.double())
        return float((gd * truth["divergence"] + ge * truth["entropy"]).sum())

    step = 1e-5
    slope = (loss(step) - loss(-step)) / (2 * step)
    mine = float((ours.cpu().double() * direction.double()).sum())
    assert mine == pytest.approx(slope, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_the_vocabulary(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the vocabulary is cut, in whatever chunks of rows: the same to rounding."""
    call = there(Call(torch.float32, kind, "both"), device)
    found = []
    for tiling in (Strategy(N, 5000, 5000), Strategy(4, 2048, 2048), Strategy(5, 1024 + 256, 0)):
        plans.force(monkeypatch, tiling)
        leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
        out = ll.linear_divergence(
            *leaves, *call.heads[2:], call.mask, backend=device.backend, **call.options
        )
        found.append((out, torch.autograd.grad(call.loss(out), leaves)))
    (whole, gradients), *others = found
    for out, mine in others:
        for x, y in zip(out[:3], whole[:3], strict=True):
            assert_values(x.cpu(), y.cpu(), torch.float32)
        for x, y in zip(mine, gradients, strict=True):
            assert_gradients(x.cpu(), y.cpu(), torch.float32, scale=20.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_vocabulary(device: Device, kind: str) -> None:
    """A bias of -inf on the padding of both is as if it were not there, at any alignment."""
    call, pad = there(Call(torch.bfloat16, kind), device), 37
    one = (call.hidden.float() @ call.weight.float().T).bfloat16()
    other = call.teacher_hidden.float() @ call.teacher_weight.float().T
    bias = torch.zeros(V + pad, device=device.name)
    bias[V:] = -INF
    wide = [torch.randn(N, V + pad, device=device.name).to(x.dtype) for x in (one, other)]
    for x, y in zip(wide, (one, other), strict=True):
        x[:, :V] = y
    results = []
    for logits, others, more in (
        (one, other, {}),
        (wide[0], wide[1], {"bias": bias, "teacher_bias": bias}),
        (wide[0][:, :V], wide[1][:, :V], {}),
    ):
        leaf = logits.detach().requires_grad_()
        out = ll.divergence(leaf, others, call.mask, backend=device.backend, **call.options, **more)
        (gradient,) = torch.autograd.grad(call.loss(out), leaf)
        assert (gradient[:, V:] == 0).all()
        results.append((*out[:3], gradient[:, :V]))
    for mine in results[1:]:
        for x, y in zip(mine[:3], results[0][:3], strict=True):
            assert_values(x.detach().cpu(), y.detach().cpu(), torch.float32)
        device.assert_gradients(mine[3], results[0][3].double().cpu().numpy(), scale=4.0)
    # a view of wider rows has their own bits
    for x, y in zip(results[2], results[0], strict=True):
        assert_bitwise_equal(x, y)


def test_rows_of_batches(device: Device) -> None:
    """[B, T, V] views with strides of their own, and gradients in memory of another layout."""
    g = torch.Generator().manual_seed(5)
    wide = torch.randn(2, 5, 2603, generator=g).to(device.name)
    others = torch.randn(2, 4, 2600, generator=g).to(device.name)
    view = wide[:, 1:, 3:]
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]], device=device.name)
    for kind in KINDS:
        found = []
        for logits in (view, view.contiguous()):
            leaf = logits.detach().requires_grad_()
            out = ll.divergence(
                leaf, others, mask, kind=kind, beta=beta_of(kind), backend=device.backend
            )
            (gradient,) = torch.autograd.grad(out.divergence.sum() - out.entropy.sum(), leaf)
            found.append((*out[:3], gradient))
        for x, y in zip(*found, strict=True):
            assert_bitwise_equal(x.contiguous(), y.contiguous())
        assert (found[0][3][~mask] == 0).all()


def ranks(device: str, backend: str, tiles: list[Any], kind: str) -> dict[str, Any]:
    """What ranks with a tile of the vocabulary each find together, as the ops do it."""
    n, beta = len(tiles[0][0]), beta_of(kind)
    rows, teacher = (Rows(registry.get(backend), n, scale=scale) for scale in (0.8, 1.3))
    make = registry.get(backend).divergence
    assert make is not None
    kernels, tiles = make(rows, teacher), [[x.to(device) for x in tile] for tile in tiles]
    parts = torch.empty(len(tiles), n, STATE, dtype=torch.float64, device=device)
    for tile, part in zip(tiles, parts, strict=True):
        kernels.forward(*tile, part, start=0, first=True)
    state, sums = torch.empty_like(parts[0]), parts.new_zeros(n, 2)
    kernels.merge(parts, state)
    for tile in tiles:
        mine = torch.empty_like(sums)
        kernels.mix(*tile, state, mine, beta=beta, start=0, first=True)
        sums += mine
    names = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    found = {name: torch.empty(n, device=device) for name in names}
    kernels.finalize(state, **found)
    gradients = [torch.empty_like(own) for own, _ in tiles]
    g = torch.arange(1.0, n + 1, dtype=torch.float64, device=device)
    for tile, gradient in zip(tiles, gradients, strict=True):
        kernels.gradient(
            *tile, state, gradient, start=0, kind=kind, beta=beta, sums=sums, g_divergence=g,
            g_entropy=-g,
        )  # fmt: skip
    found |= {"parts": parts, "state": state, "sums": sums, "gradient": torch.cat(gradients, 1)}
    return {name: x.cpu() for name, x in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_the_vocabulary(device: Device, kind: str) -> None:
    """Ranks' parts, one of them without mass, as one rank has it, and as the CPU's kernels do."""
    g = torch.Generator().manual_seed(4)
    tiles = [[torch.randn(5, 700, generator=g) * size for size in (4, 1)] for _ in range(3)]
    tiles[0][0][:3], tiles[0][1][:3] = -INF, -INF
    tiles[2][0][4], tiles[2][1][4] = -INF, -INF
    whole = [[torch.cat(side, 1) for side in zip(*tiles, strict=True)]]
    mine = ranks(device.name, device.backend, tiles, kind)
    truth = ranks("cpu", "cpu", tiles, kind)
    one = ranks(device.name, device.backend, whole, kind)
    torch.testing.assert_close(
        merge_pair_states(truth["parts"], 0.8, 1.3), truth["state"], rtol=1e-13, atol=1e-13
    )
    for name in truth:
        torch.testing.assert_close(
            mine[name],
            truth[name],
            rtol=1e-5,
            atol=2e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )
        if name != "parts":
            torch.testing.assert_close(
                mine[name],
                one[name],
                rtol=1e-5,
                atol=2e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )


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


WRONG: dict[str, dict[str, Any]] = {
    "teacher_logits must have the columns of logits, 7, got 6": {"other": torch.zeros(3, 6)},
    r"teacher_logits must .*3 rows, got (4|\[4, 7\])": {"other": torch.zeros(4, 7)},
    "logits must be .*float32.*, got .*float64": {"tile": torch.zeros(3, 7, dtype=torch.float64)},
    "state must (hold|have)": {"state": torch.zeros(3, 7, dtype=torch.float64)},
    "gradient must .* dtype|gradient must be like logits": {"out": torch.zeros(3, 7).bfloat16()},
    "sums must (hold|have)": {"sums": torch.zeros(3, 1, dtype=torch.float64)},
    "g_divergence must (hold|have)": {"g_divergence": torch.zeros(2)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arrays_are_named(device: Device, message: str) -> None:
    make = registry.get(device.backend).divergence
    assert make is not None
    rows, fewer = (Rows(registry.get(device.backend), n) for n in (3, 2))
    arrays: dict[str, Any] = {
        "tile": torch.zeros(3, 7), "other": torch.zeros(3, 7),
        "state": torch.zeros(3, STATE, dtype=torch.float64), "out": torch.zeros(3, 7),
        "sums": torch.zeros(3, 2, dtype=torch.float64), "g_divergence": torch.zeros(3),
        **WRONG[message],
    }  # fmt: skip
    tensors = {name: x.to(device.name) for name, x in arrays.items()}
    more = {name: tensors.pop(name) for name in ("sums", "g_divergence")}
    with pytest.raises((ValueError, TypeError), match=message):
        make(rows, rows).gradient(
            *tensors.values(), start=0, kind="jsd", beta=0.3, g_entropy=None, **more
        )
    with pytest.raises(ValueError, match="teacher must have 3 rows, got 2"):
        make(rows, fewer).forward(*list(tensors.values())[:3], start=0, first=True)


def test_float64_is_refused(device: Device) -> None:
    x = torch.zeros(2, 5, dtype=torch.float64, device=device.name)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match="float32"):
        ll.divergence(x, x, backend=device.backend)
