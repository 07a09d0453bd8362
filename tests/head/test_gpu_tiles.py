"""Heads in a GPU's tiles: the results are those of the CPU's tiles.

The machine is one of the table, its tiles so small that a test has several; the row kernels are the
fake ones, so that nothing here needs a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import logitless as ll
from logitless.backends.products import TORCH
from logitless.ops.head.gemm import GradientSum
from logitless.ops.head.planner.cost import Strategy
from logitless.ops.head.planner.plan import plan_on
from tests.support import cases
from tests.support.device.devices import register
from tests.support.device.fakes import FakeRows
from tests.support.device.mixed import MixedProducts, as_gpu, gpu
from tests.support.heads import problem
from tests.support.plans import force, took_one_pass
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

# An odd vocabulary: rows of the last tile, or of all in one, would not be aligned.
N, H, V = 24, 16, 7001
# four tiles of 2048 columns
TILE = 24 * 2048 * 4
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)]


@pytest.fixture(params=[True, False], ids=["mixed products", "torch's alone"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    register(monkeypatch, FakeRows)
    found = gpu(tile_bytes=TILE)
    return as_gpu(monkeypatch, "triton", found, mixed=request.param)


def budget_of(machine: Any, mode: str, dtypes: Any) -> int:
    """One with which the plan of forward and backward apart has this mode."""
    dtype, logits_dtype = dtypes
    asked, options = (N, H, V, dtype), {"logits_dtype": logits_dtype, "one_pass": False}
    with pytest.raises(ValueError, match="at least") as refused:
        plan_on(machine, *asked, 1, **options)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    for budget in (least, *range(least, 3_000_000, 50_000), 1 << 30):
        if plan_on(machine, *asked, budget, **options).mode == mode:
            return budget
    raise AssertionError(f"no budget gives {mode}")


def compare(ours: list[torch.Tensor], right: list[torch.Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(ours, right, strict=True):
        assert a.dtype == b.dtype
        largest = float(b.abs().max())
        assert largest > 0
        # 16-bit d(logits), and products rounded before they are added up or not
        assert_gradients(a, b, dtype, scale=2 + largest * (1e4 if dtype != F32 else 5))


@pytest.mark.parametrize("rows", ["all", "masked", "few active", "most active"])
@pytest.mark.parametrize("mode", ["keep", "mix", "recompute"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_token_stats_of_a_head(machine: Any, dtypes: Any, mode: str, rows: str) -> None:
    dtype, logits_dtype = dtypes
    h, w, t = problem(3, N, H, V, dtype)
    bias = torch.randn(V, generator=torch.Generator().manual_seed(4)).requires_grad_()
    g: tuple[torch.Tensor, ...] = cases.upstream(3, N)
    mask = cases.mask(3, N) if rows == "masked" else None
    if "active" in rows:
        # most of them have no room in one tile
        active = torch.arange(N) % 6 == 0
        g = tuple(x * (active if rows == "few active" else ~active) for x in g)
    budget = budget_of(machine, mode, dtypes)

    def run(backend: str, memory_budget: int | None) -> list[torch.Tensor]:
        stats = ll.linear_token_stats(
            h, w, t, mask=mask, bias=bias, backend=backend, memory_budget=memory_budget,
            logits_dtype=logits_dtype,
        )  # fmt: skip
        values = (stats.logp, stats.entropy, stats.lse)
        loss = sum((x * y).sum() for x, y in zip(values, g, strict=True))
        return [*values, *torch.autograd.grad(loss, (h, w, bias))]

    ours, right = run("triton", budget), run("cpu", None)
    for a, b in zip(ours[:3], right[:3], strict=True):
        # logits of other products round otherwise
        assert_values(a, b, F32, plain=b + (0.02 if logits_dtype != F32 else 2e-6))
    compare(ours[3:], right[3:], dtype)


@pytest.mark.parametrize("chunk", [N, 10])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_policy_loss_of_a_head(
    machine: Any, dtypes: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All logits of a chunk are one tile, of which a mask takes rows."""
    dtype, logits_dtype = dtypes
    h, w, t = problem(5, N, H, V, dtype)
    old, spec = torch.zeros(N), ll.PolicyLossSpec(ratio="none", surrogate=ll.Reinforce())
    advantages = torch.randn(N, generator=torch.Generator().manual_seed(6))
    advantages[4:11] = 0
    mask = torch.arange(N) % 7 != 3

    def run(backend: str, *strategies: Strategy) -> list[torch.Tensor]:
        with monkeypatch.context() as patched:
            if strategies:
                force(patched, *strategies)
            out = ll.linear_policy_loss(
                h, w, t, old, advantages, mask, spec, backend=backend, logits_dtype=logits_dtype
            )
        assert took_one_pass(out) == bool(strategies)
        return [out.loss.detach().view(1), *torch.autograd.grad(out.loss, (h, w))]

    ours = run("triton", Strategy(chunk, V, 0, chunk))
    right = run("cpu")
    assert_gradients(ours[0], right[0], F32, scale=1e4 if dtype != F32 else 5)
    compare(ours[1:], right[1:], dtype)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_batch_invariant_products_have_one_shape(machine: Any, dtypes: Any) -> None:
    dtype, logits_dtype = dtypes
    h, w, t = (x.detach() for x in problem(7, N, H, V, dtype))
    options = {"backend": "triton", "batch_invariant": True, "logits_dtype": logits_dtype}
    every = ll.linear_token_stats(h, w, t, **options)
    some = ll.linear_token_stats(h[5:9], w, t[5:9], **options)
    for a, b in zip(every[:3], some[:3], strict=True):
        assert_bitwise_equal(a[5:9], b)


def test_float32_logits_of_16_bit_operands_are_not_rounded(machine: Any) -> None:
    """Products in 16 bits would be off by 0.01."""
    h, w, t = (x.detach() for x in problem(8, N, H, V, BF16))
    found = ll.linear_token_stats(h, w, t, backend="triton", logits_dtype=F32)
    z = h.double() @ w.double().t()
    assert_values(found.lse, z.logsumexp(1), F32)


def test_sums_are_added_up_in_float32() -> None:
    """Where products are mixed, no partial one is rounded; where not, all of them are."""
    g = torch.Generator().manual_seed(9)
    parts = [
        (torch.randn(40, 64, generator=g).to(BF16), torch.randn(64, H, generator=g).to(BF16))
        for _ in range(8)
    ]
    truth = torch.stack([a.double() @ b.double() for a, b in parts]).sum(0)

    def error(products: Any, mixed: bool) -> float:
        total = torch.empty(40, H)
        sums = GradientSum(total, products, mixed=mixed, alpha=0.5)
        for a, b in parts:
            sums.add(a, b)
        return float((2 * total - truth).abs().max())

    assert error(MixedProducts(), True) < 1e-4 < 1e-2 < error(TORCH, False)


@pytest.mark.parametrize("kept", [V, 4096, 0])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_tiles_of_some_rows(
    machine: Any, dtypes: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a budget is short of all rows: sums of d_weight as well."""
    dtype, logits_dtype = dtypes
    h, w, t = problem(10, N, H, V, dtype)
    g = cases.upstream(10, N)[0]

    def run(backend: str) -> list[torch.Tensor]:
        stats = ll.linear_token_stats(h, w, t, backend=backend, logits_dtype=logits_dtype)
        return list(torch.autograd.grad((stats.logp + stats.entropy).dot(g), (h, w)))

    right = run("cpu")
    force(monkeypatch, Strategy(10, V if kept == V else 2048, kept))
    compare(run("triton"), right, dtype)


def test_overflown_gradients_come_through(machine: Any) -> None:
    """A scaler of float16 losses looks for them; small ones are not lost on their way."""
    h, w, t = problem(12, N, H, V, F16)
    stats = ll.linear_token_stats(h, w, t, backend="triton", logits_dtype=F32)
    (overflown,) = torch.autograd.grad(stats.logp.sum() * float("inf"), h)
    assert not overflown.isfinite().any()
    stats = ll.linear_token_stats(h, w, t, backend="triton", logits_dtype=F32)
    (small,) = torch.autograd.grad(stats.logp.sum() * 1e-4, h)
    expected = ll.linear_token_stats(h, w, t, backend="cpu", logits_dtype=F32)
    (right,) = torch.autograd.grad(expected.logp.sum() * 1e-4, h)
    assert_gradients(small, right, F16, scale=0.5)
