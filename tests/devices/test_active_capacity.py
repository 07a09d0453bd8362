"""A head of a fixed number of rows: on a device nothing in it waits, forward or backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.backends import registry
from logitless.backends.row_kernels import errors
from logitless.ops.head import inputs as head_inputs
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.device.waits import NothingIsRead, NothingIsSent, as_on_device
from tests.support.heads import B, T, batch, problem
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal, assert_values
from tests.support.workers.ranks import run_ranks

pytestmark = pytest.mark.fakes

N, H, V = 14, 16, 4503
BF16, F32 = torch.bfloat16, torch.float32
CAPACITIES = {"exact": 9, "larger": 12, "all": N, "beyond": 1000}
WAYS = {"apart": APART, **CHUNKS}


def mask_of(count: int) -> Tensor:
    """So many active rows, neither the first nor the last of all."""
    mask = torch.zeros(N, dtype=torch.bool)
    mask[torch.randperm(N - 2, generator=torch.Generator().manual_seed(3))[:count] + 1] = True
    return mask


def stats_of(
    device: Device, dtype: torch.dtype, chain: str, frozen: str = "", **options: Any
) -> list[Tensor]:
    """logp, entropy and gradients of a head of 9 active rows; others are not even numbers."""
    h, w, t = problem(5, N, H, V, dtype)
    mask, g = mask_of(9), cases.upstream(5, N)
    h = h.detach().masked_fill(~mask[:, None], float("nan"))
    links = cases.chain(chain, 5, N, V)
    there: dict[str, Any] = {
        k: device.put(x)[0] if torch.is_tensor(x) else x for k, x in links.items()
    }
    leaves = dict(zip(("hidden", "weight"), device.put(h, w), strict=True))
    leaves |= {"bias": there["bias"]} if "bias" in there else {}
    wanted = [x.requires_grad_() for name, x in leaves.items() if name != frozen]
    targets, active = device.put(torch.where(mask, t, -100), mask)
    stats = ll.linear_token_stats(
        leaves["hidden"], leaves["weight"], targets, mask=active, backend=device.backend,
        **there, **options,
    )  # fmt: skip
    # every row has a gradient, so that only the mask drops some
    upstream = device.put(*(x + x.sign() + (x == 0) for x in g))
    loss = sum((x * y).sum() for x, y in zip(stats[:3], upstream, strict=True))
    return [stats.logp, stats.entropy, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize(
    ("dtype", "chain", "options"),
    [
        (F32, "all", {}), (F32, "plain", {"memory_budget": 800_000}),
        (F32, "plain", {"frozen": "weight"}), (F32, "bias", {"frozen": "hidden"}),
        (F32, "softcap", {"batch_invariant": True}), (BF16, "row_temperature", {}),
        (BF16, "plain", {"logits_dtype": F32}), (BF16, "all", {"memory_budget": 800_000}),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_are_those_of_a_call_that_counts(
    device: Device, dtype: torch.dtype, chain: str, options: dict[str, Any], capacity: str
) -> None:
    """Where there is room for as many rows as there are, bit for bit."""
    right = stats_of(device, dtype, chain, **options)
    ours = stats_of(device, dtype, chain, **options, active_capacity=CAPACITIES[capacity])
    for a, b in zip(ours, right, strict=True):
        if capacity == "exact" or (options.get("batch_invariant") and a.shape == (N,)):
            assert_bitwise_equal(a, b)
        assert b.isfinite().all() and b.abs().max() > 0
        near(device, a, b)


def near(device: Device, ours: Tensor, right: Tensor) -> None:
    """Up to the roundings of products of another height."""
    if ours.dtype == BF16 or right.ndim != 2:
        slack = 2.0**-6 if ours.dtype == BF16 else 3e-5
        assert_values(ours.float(), right.float(), F32, plain=right.float() + slack)
    else:
        device.assert_gradients(ours, cases.to_numpy(right), scale=5)


def test_of_no_active_row(device: Device) -> None:
    h, w, t = problem(5, N, H, V, F32)
    h, w = leaves = [x.requires_grad_() for x in device.put(h, w)]
    t, mask = device.put(t, mask_of(0))
    stats = ll.linear_token_stats(
        h, w, t, mask=mask, backend=device.backend, active_capacity=3, extras=("argmax",)
    )
    assert (stats.logp == 0).all() and (stats.extras["argmax"] == -1).all()
    for gradient in torch.autograd.grad(stats.logp.sum(), leaves):
        assert (gradient == 0).all()


def loss_call(
    device: Device, dtype: torch.dtype = F32, **options: Any
) -> Callable[..., list[Tensor]]:
    """loss, logp, an extra and gradients of 17 active tokens of 24."""
    data: dict[str, Any] = {name: device.put(x)[0] for name, x in batch().items()}
    data |= {name: data[name].to(dtype) for name in ("hidden", "weight")}
    leaves = [data[name].requires_grad_() for name in ("hidden", "weight")]

    def run(**more: Any) -> list[Tensor]:
        out = ll.linear_policy_loss(
            **data, spec=ll.presets["ppo"], backend=device.backend, **options, **more
        )
        extras = list(out.extras.values())
        # a factor that 16 bits do not hold
        gradients = torch.autograd.grad(out.loss / 3, leaves)
        return [out.loss.detach(), out.logp, *extras, *gradients]

    return run


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("capacity", [17, 20, B * T])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_loss(
    device: Device, way: Any, capacity: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass, in chunks of rows the last of which may be left over, and apart."""
    run = loss_call(device, dtype, extras=("varentropy", "argmax"))
    force(monkeypatch, way)
    for ours, right in zip(run(active_capacity=capacity), run(), strict=True):
        assert right.abs().max() > 0
        if right.dtype == torch.int64:
            assert_bitwise_equal(ours, right)
        else:
            near(device, ours, right)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("capacity", [17, 20, None, B * T])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nothing_waits(
    device: Device, way: Any, capacity: int | None, adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a graph is captured, where a call without a capacity takes all rows for active."""
    stands_in = registry.get(device.backend).tokens is None
    as_on_device(device, monkeypatch)
    generator = torch.Generator().manual_seed(6)
    low = device.put(*(torch.randn(*shape, generator=generator) for shape in ((2, 8), (2500, 2))))
    run = loss_call(device, adapter=(*low, 0.5) if adapter else None)
    force(monkeypatch, way)
    right = run()
    for module in (errors, head_inputs):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    with NothingIsRead() if stands_in else NothingIsSent():
        ours = run(active_capacity=capacity)
    for a, b in zip(ours, right, strict=True):
        near(device, a, b)


def test_a_call_that_counts_waits(device: Device) -> None:
    """Or the test above could not fail: in its forward without a fixed number, and its backward."""
    h, w, t, mask = device.put(*problem(5, N, H, V, F32), mask_of(9))
    h.requires_grad_()
    options: dict[str, Any] = {"backend": device.backend}
    with pytest.raises(AssertionError, match="waits"), NothingIsRead():
        ll.linear_token_stats(h, w, t, mask=mask, **options)
    stats = ll.linear_token_stats(h, w, t, **options)
    with pytest.raises(AssertionError, match="waits"), NothingIsRead():
        torch.autograd.grad(stats.logp.sum(), h)


MESSAGE = "active_capacity must be at least the number of active rows, {}, got {}"


def test_more_rows_than_there_is_room_for(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that there is room for are NaN and so are their gradients; what came is named, and what
    there is room for."""
    h, w, t = problem(5, N, H, V, F32)
    h, w = leaves = [x.requires_grad_() for x in device.put(h, w)]
    t, mask = device.put(t, mask_of(9))

    def call() -> ll.TokenStats:
        return ll.linear_token_stats(h, w, t, mask=mask, backend=device.backend, active_capacity=8)

    stats = call()
    assert stats.logp.isnan().sum() == 8
    with monkeypatch.context() as later:
        later.setattr("logitless.ops.rows.arguments.raise_found", lambda device: None)
        d_hidden, d_weight = torch.autograd.grad(stats.logp.sum(), leaves)
    assert d_hidden.isnan().all(1).sum() == 8 and d_weight.isnan().all()
    device.wait()
    message = f"^linear_token_stats: {MESSAGE.format(9, 8)}"
    with pytest.raises(RuntimeError, match=f"{message}. Found after"):
        call()
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"{message}$"):
        call()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_loss_of_more_rows(device: Device, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loss_call(device)
    force(monkeypatch, way)
    named = "linear_(token_stats|policy_loss): " + MESSAGE.format(17, 16)
    if registry.get(device.backend).tokens is None:
        # the CPU's look at each log-prob, of a chunk before the flag is asked for
        with pytest.raises((RuntimeError, ValueError), match=f"{named}|must be finite"):
            run(active_capacity=16)
        return
    with monkeypatch.context() as later:
        later.setattr("logitless.ops.rows.arguments.raise_found", lambda device: None)
        for x in run(active_capacity=16):
            assert x.isnan().any()
    device.wait()
    with pytest.raises(RuntimeError, match=named):
        run()


# ---- a student beside a teacher


def pair_of(device: Device, kind: str, dtype: torch.dtype = F32) -> Callable[..., list[Tensor]]:
    """Values and gradients of two heads of 9 active rows; others are not even numbers."""
    h, w, _ = problem(5, N, H, V, dtype)
    other, columns, _ = problem(6, N, 8, V, dtype)
    mask = mask_of(9)
    h, other = (x.detach().masked_fill(~mask[:, None], float("nan")) for x in (h, other))
    leaves = [x.requires_grad_() for x in device.put(h, w)]
    given = device.put(other, columns, mask)
    # of tokens, so that every row has a gradient and another temperature
    g, temperature = device.put(torch.linspace(0.5, 2, N), torch.linspace(0.7, 1.3, N))

    def run(**options: Any) -> list[Tensor]:
        out = ll.linear_divergence(
            *leaves, *given, kind=kind, temperature=temperature, backend=device.backend, **options
        )
        values = [out.divergence, out.entropy, out.teacher_entropy]
        loss = (values[0] * g + values[1]).sum()
        return [*(x.detach() for x in values), *torch.autograd.grad(loss, leaves)]

    return run


@pytest.fixture
def two_heads(device: Device) -> None:
    if device.fake:
        pytest.skip("the fake kernels have no teacher")


KINDS = ("reverse_kl", "forward_kl", "jsd")
# Each kind, and each capacity.
PAIRS = [
    ("reverse_kl", "exact"), ("reverse_kl", "all"), ("forward_kl", "larger"), ("jsd", "exact"),
    ("jsd", "larger"), ("jsd", "beyond"),
]  # fmt: skip


@pytest.mark.usefixtures("two_heads")
@pytest.mark.parametrize(("kind", "capacity"), PAIRS)
def test_two_heads(device: Device, kind: str, capacity: str) -> None:
    for dtype, budget in ((F32, None), (F32, 1_600_000), (BF16, None)):
        run = pair_of(device, kind, dtype)
        right = run(memory_budget=budget)
        ours = run(memory_budget=budget, active_capacity=CAPACITIES[capacity])
        for a, b in zip(ours, right, strict=True):
            if capacity == "exact":
                assert_bitwise_equal(a, b)
            assert b.isfinite().all() and b.abs().max() > 0
            near(device, a, b)


@pytest.mark.usefixtures("two_heads")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_two_heads_waits(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_device(device, monkeypatch)
    run = pair_of(device, kind)
    right = run()
    with pytest.raises(AssertionError, match="waits"), NothingIsRead():
        run()
    with NothingIsRead():
        fixed = run(active_capacity=12)
    for module in (errors, head_inputs):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    with NothingIsRead():
        captured = run()
    for found in (fixed, captured):
        for a, b in zip(found, right, strict=True):
            near(device, a, b)


@pytest.mark.usefixtures("two_heads")
@pytest.mark.parametrize("kind", KINDS)
def test_two_heads_of_more_rows(device: Device, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pair_of(device, kind)
    named = "linear_divergence: " + MESSAGE.format(9, 8)
    with monkeypatch.context() as later:
        later.setattr("logitless.ops.rows.arguments.raise_found", lambda device: None)
        divergence, entropy, _, d_hidden, d_weight = run(active_capacity=8)
    for x in (divergence, entropy, d_hidden.sum(1)):
        assert x.isnan().sum() == 8
    assert d_weight.isnan().all()
    device.wait()
    with pytest.raises(RuntimeError, match=named):
        run()
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=named):
        run(active_capacity=8)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("worker", ["vocab.device_capacity", "vocab.waits"])
def test_a_vocabulary_of_two_ranks(device: Device, worker: str, tmp_path: Path) -> None:
    if device.fake:
        pytest.skip("ranks are processes of their own, which have no fake kernels")
    store, where = str(tmp_path / "store"), [device.backend, device.name]
    run_ranks(worker, [[str(rank), "2", store, *where] for rank in range(2)], 300)
