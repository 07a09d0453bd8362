"""active_capacity where the host counts: a check that changes nothing else, and what plans know."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import logitless as ll
from tests.support.device.mixed import as_gpu, gpu
from tests.support.heads import batch, problem
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal

N, H, V = 12, 16, 2500
MESSAGE = "active_capacity must be at least the number of active rows, {}, got {}"
WAYS = {"apart": APART, **CHUNKS}


def head(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return (*problem(1, N, H, V, dtype), torch.arange(N) % 4 != 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_bits_are_those_without(
    way: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: dict[str, Any] = batch()
    data |= {k: data[k].to(dtype).requires_grad_() for k in ("hidden", "weight")}
    force(monkeypatch, way)

    def run(capacity: int | None) -> list[torch.Tensor]:
        out = ll.linear_policy_loss(**data, spec=ll.presets["ppo"], active_capacity=capacity)
        leaves = (data["hidden"], data["weight"])
        return [out.loss.detach(), out.logp, *torch.autograd.grad(out.loss, leaves)]

    count = int(data["mask"].sum())
    right = run(None)
    for capacity in (count, count + 1, 1000):
        for a, b in zip(run(capacity), right, strict=True):
            assert_bitwise_equal(a, b)
    message = "^linear_policy_loss: " + MESSAGE.format(count, count - 1)
    if way is APART:
        message = message.replace("policy_loss", "(policy_loss|token_stats)")
    with pytest.raises(ValueError, match=message):
        run(count - 1)


def test_too_many_rows_are_refused_before_any_product() -> None:
    h, w, t, mask = head()
    with pytest.raises(ValueError, match=f"^linear_token_stats: {MESSAGE.format(9, 8)}$"):
        ll.linear_token_stats(h, w, t, mask=mask, active_capacity=8)
    with pytest.raises(ValueError, match=f"^linear_token_stats: {MESSAGE.format(N, 9)}$"):
        ll.linear_token_stats(h, w, t, active_capacity=9)
    assert ll.linear_token_stats(h, w, t, active_capacity=N).logp.isfinite().all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_in_a_compiled_graph(dynamic: bool) -> None:
    h, w, t, mask = head()

    def logp(mask: torch.Tensor) -> torch.Tensor:
        return ll.linear_token_stats(h, w, t, mask=mask, active_capacity=9).logp

    torch._dynamo.reset()
    compiled = torch.compile(logp, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    ours, wanted = compiled(mask), logp(mask)
    assert_bitwise_equal(ours, wanted)
    gradients = (torch.autograd.grad(x.sum(), (h, w)) for x in (ours, wanted))
    for a, b in zip(*gradients, strict=True):
        assert_bitwise_equal(a, b)
    with pytest.raises(ValueError, match=MESSAGE.format(10, 9)):
        compiled(mask | (torch.arange(N) == 1))


def test_what_cannot_have_it_says_so() -> None:
    h, w, t, mask = head()
    sets = ll.SamplingMask.from_lists([[i] for i in range(N)])
    refused: list[tuple[str, type[Exception], dict[str, Any]]] = [
        ("active_capacity with tail_mass is not built, got 9", NotImplementedError,
         {"tail_mass": 1e-3}),
        ("active_capacity with a sampling_mask is not built", NotImplementedError,
         {"sampling_mask": sets}),
        ("active_capacity with entropy_top_p is not built", NotImplementedError,
         {"entropy_top_p": 0.8}),
        ("active_capacity is not built for backend 'torch'", NotImplementedError,
         {"backend": "torch"}),
    ]  # fmt: skip
    for message, kind, options in refused:
        with pytest.raises(kind, match=message):
            ll.linear_token_stats(h, w, t, mask=mask, active_capacity=9, **options)
    arrays = (x.detach().numpy() for x in (h, w, t))
    with pytest.raises(ValueError, match="active_capacity must be left at its default for NumPy"):
        ll.linear_token_stats(*arrays, active_capacity=N)
    with pytest.raises(NotImplementedError, match="active_capacity with tail_mass"):
        ll.plan(8, 8, 100, tail_mass=1e-3, active_capacity=4)


def test_two_heads() -> None:
    """The bits that they have without; and what they refuse."""
    h, w, _, mask = head()
    other, columns, _ = problem(2, N, 5, V, torch.float32)

    def run(capacity: int | None, **options: Any) -> list[torch.Tensor]:
        found = ll.linear_divergence(
            h, w, other, columns, mask, kind="jsd", active_capacity=capacity, **options
        )
        return [found.divergence, *torch.autograd.grad(found.divergence.sum(), (h, w))]

    right = run(None)
    for capacity in (9, 10, 1000):
        for a, b in zip(run(capacity), right, strict=True):
            assert_bitwise_equal(a, b)
    with pytest.raises(ValueError, match=f"^linear_divergence: {MESSAGE.format(9, 8)}$"):
        run(8)
    with pytest.raises(NotImplementedError, match="active_capacity with a sampling_mask is not"):
        run(9, sampling_mask=ll.SamplingMask.from_lists([[i] for i in range(N)]))
    with pytest.raises(NotImplementedError, match="active_capacity is not built for backend 'tor"):
        run(9, backend="torch")
    arrays = (x.detach().numpy() for x in (h, w, other, columns))
    with pytest.raises(ValueError, match="active_capacity must be left at its default for NumPy"):
        ll.linear_divergence(*arrays, active_capacity=N)


def test_plans_of_a_device_are_of_so_many_rows() -> None:
    """A CPU's are of all tokens: it takes no more than are active."""
    asked = (8192, 2048, 151936, "bfloat16")
    for options in ({}, {"one_pass": False}, {"budget": "3GiB"}):
        plan = functools.partial(ll.plan, *asked, device="H200", **options)
        some, fewer = plan(active_capacity=3000), ll.plan(3000, *asked[1:], device="H200",
                                                          **options)  # fmt: skip
        assert (some.tokens, some.active_capacity) == (8192, 3000)
        assert some.total_bytes == fewer.total_bytes < plan().total_bytes
        assert some.expected_seconds == fewer.expected_seconds < plan().expected_seconds
        assert some.products == pytest.approx(fewer.products * 3000 / 8192)
        # one chunk is one whatever the tokens
        assert (some.chunk_rows == 8192) == (fewer.chunk_rows == 3000)
        for beyond in (8192, 10**6):
            assert plan(active_capacity=beyond).total_bytes == plan().total_bytes
        assert "at most 3000 active" in str(some)
        with pytest.raises(NotImplementedError, match="gradients of float16 with active_capacity"):
            ll.plan(*asked[:3], "float16", device="H200", active_capacity=3000, **options)
    here, there = (ll.plan(*asked, active_capacity=c) for c in (None, 3000))
    assert here.total_bytes == there.total_bytes and here.chunk_rows == there.chunk_rows


def test_memory_of_a_device_is_that_of_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are kept, of as many rows as there is room for."""
    from logitless.ops.head import stats_op

    h, w, t, mask = head()
    as_gpu(monkeypatch, "cpu", gpu())
    sizes, memory = [], stats_op._logits_memory

    def seen(given: Any) -> torch.Tensor:
        kept = memory(given)
        sizes.append(len(kept))
        return kept

    monkeypatch.setattr(stats_op, "_logits_memory", seen)
    for capacity in (9, None):
        ll.linear_token_stats(h, w, t, mask=mask, active_capacity=capacity)
    assert sizes[0] / sizes[1] == pytest.approx(9 / N)
