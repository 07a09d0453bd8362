"""What only a device has: streams, graphs, no waiting, sizes beyond 2^31."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import logitless as ll
from logitless.backends import registry as backends
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.device.token_batches import stats_arrays
from tests.support.losses.loss_specs import SPECS, make_batch
from tests.support.plans import force
from tests.support.tolerances import assert_bitwise_equal

pytestmark = pytest.mark.gpu


@pytest.fixture(params=backends.ON_DEVICE)
def backend(request: pytest.FixtureRequest) -> str:
    why = backends.why_not(request.param, "cuda:0")
    if why:
        pytest.skip(f"{request.param}: {why}")
    return str(request.param)


def problem(n: int, vocab: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    z, t, temperature = cases.logits(1, n, vocab, dtype), cases.targets(1, n, vocab), torch.rand(n)
    return tuple(x.cuda() for x in (z, t, cases.mask(1, n), temperature + 0.5))


def test_auto_takes_what_serves() -> None:
    chosen = backends.choose("auto", "cuda:0", "bfloat16")
    assert chosen == next(b for b in backends.ON_DEVICE if not backends.why_not(b, "cuda:0"))
    z, t, *_ = problem(4, 500)
    auto, named = ll.token_stats(z, t), ll.token_stats(z, t, backend=chosen)
    assert_bitwise_equal(auto.logp, named.logp)
    assert backends.choose("auto", "cuda:0", "float64") == "torch"


def test_nothing_waits(backend: str) -> None:
    """Every synchronisation that torch sees raises."""
    z, t, mask, temperature = problem(16, 5000)
    z.requires_grad_()
    g = torch.randn(16, device="cuda")

    def step() -> None:
        stats = ll.token_stats(z, t, mask=mask, temperature=temperature, backend=backend)
        (stats.logp * g + stats.entropy).sum().backward()

    # The first call sets up the flag and compiles kernels.
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(40):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_forward_replays_with_new_inputs(backend: str) -> None:
    z, t, mask, temperature = problem(33, 9000)

    def forward() -> ll.TokenStats:
        return ll.token_stats(
            z, t, mask=mask, temperature=temperature, extras=("argmax",), backend=backend
        )

    # The customary warm-up on a stream of its own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward()
    for seed in (5, 6):
        z.copy_(cases.logits(seed, 33, 9000, torch.bfloat16))
        t.copy_(cases.targets(seed, 33, 9000))
        temperature.mul_(1.1)
        graph.replay()
        eager = forward()
        for a, b in zip(captured[:3], eager[:3], strict=True):
            assert_bitwise_equal(a, b)
        assert_bitwise_equal(captured.extras["argmax"], eager.extras["argmax"])
    # What a replay flags, the next call outside of the graph finds.
    z[mask.nonzero()[0]] = float("nan")
    row = int(mask.nonzero()[0])
    graph.replay()
    assert captured.logp[row].isnan()
    z.copy_(cases.logits(7, 33, 9000, torch.bfloat16))
    t.copy_(cases.targets(7, 33, 9000))
    forward()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match=f"replayed CUDA graph.*row {row}: its logits hold a"):
        forward()


def test_a_captured_backward_replays(backend: str) -> None:
    z, t, *_ = problem(8, 5000)
    z.requires_grad_()
    g = torch.randn(8, device="cuda")

    def step() -> torch.Tensor:
        stats = ll.token_stats(z, t, backend=backend)
        return torch.autograd.grad((stats.logp * g + stats.entropy).sum(), z)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    g.neg_()
    graph.replay()
    assert_bitwise_equal(captured, step())


def test_the_callers_stream_is_used(backend: str) -> None:
    """Work on a side stream waits for that stream alone and its results are right."""
    z, t, *_ = problem(64, 60_000)
    expected = ll.token_stats(z, t, backend=backend)
    torch.cuda.synchronize()
    side, late = torch.cuda.Stream(), torch.empty_like(z)
    with torch.cuda.stream(side):
        # About 10 ms during which a launch on any other stream would read the memory above.
        torch.cuda._sleep(20_000_000)
        late.copy_(z)
        stats = ll.token_stats(late, t, backend=backend)
    side.synchronize()
    for a, b in zip(stats[:3], expected[:3], strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_the_current_one(backend: str) -> None:
    z, t, *_ = problem(8, 5000)
    expected = ll.token_stats(z, t, backend=backend)
    there = z.to("cuda:1").requires_grad_()
    stats = ll.token_stats(there, t.to("cuda:1"), backend=backend)
    assert stats.logp.device == torch.device("cuda:1")
    assert_bitwise_equal(stats.logp, expected.logp)
    stats.logp.sum().backward()
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("option", [{}, {"tail_mass": 1e-2}, {"active_capacity": 8}], ids=str)
def test_a_head_on_a_device_that_is_not_the_current_one(
    backend: str, option: dict[str, float]
) -> None:
    h, w = torch.randn(8, 64, device="cuda:0"), torch.randn(5000, 64, device="cuda:0")
    ids = torch.arange(8, device="cuda:0")

    def results(device: str) -> list[torch.Tensor]:
        leaves = [x.to(device).requires_grad_() for x in (h, w)]
        given: Any = {"mask": torch.ones_like(ids, dtype=torch.bool, device=device), **option}
        stats = ll.linear_token_stats(*leaves, ids.to(device), backend=backend, **given)
        return [stats.logp, *torch.autograd.grad(stats.logp.sum(), leaves)]

    for a, b in zip(results("cuda:1"), results("cuda:0"), strict=True):
        assert a.device == torch.device("cuda:1")
        assert_bitwise_equal(a.to("cuda:0"), b)
    assert torch.cuda.current_device() == 0


def test_more_than_two_to_the_31_logits(backend: str) -> None:
    """16384 x 151936: 2.5e9 logits, whose last rows start beyond 32-bit offsets."""
    n, vocab = 16_384, 151_936
    # Logits and the gradient over them: 5 GB, and room for the tail's copies.
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of device memory")
    z = torch.empty(n, vocab, dtype=torch.bfloat16, device="cuda").normal_()
    t = torch.randint(0, vocab, (n,), device="cuda")
    tail = slice(n - 4, n)
    results = []
    for logits, targets in ((z[tail].clone(), t[tail]), (z, t)):
        logits.requires_grad_()
        stats = ll.token_stats(
            logits, targets, inplace_backward=True, extras=("argmax",), backend=backend
        )
        (gradient,) = torch.autograd.grad(stats.logp.sum(), logits)
        results.append([*(x.detach() for x in stats[:3]), stats.extras["argmax"], gradient])
    small, large = results
    for a, b in zip(small, large, strict=True):
        assert_bitwise_equal(a, b[tail])
    # Each row of the gradient of logp sums to nothing, up to bfloat16 roundings.
    assert large[-1][:: n // 8].float().sum(-1).abs().max() < 0.05


@pytest.mark.skipif(bool(backends.why_not("cuda", "cuda:0")), reason="no compiled CUDA kernels")
@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.9, "top_k": 40}], ids=str)
def test_a_draw_waits_for_nothing_and_can_be_captured(truncation: dict[str, float]) -> None:
    h, w = torch.randn(9, 64, device="cuda"), torch.randn(5000, 64, device="cuda")
    ids = torch.arange(9, device="cuda")

    def call() -> tuple[torch.Tensor, ...]:
        found = ll.linear_sample(h, w, seed=1, step=2, row_ids=ids, **truncation)
        return (*found, found.kept_logp)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(40):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for shift in (100, 200):
        # Another step of the same sequences.
        ids.add_(shift)
        h.mul_(0.9)
        graph.replay()
        for one, other in zip(captured, call(), strict=True):
            assert_bitwise_equal(one, other)


@pytest.mark.skipif(bool(backends.why_not("cuda", "cuda:0")), reason="no compiled CUDA kernels")
@pytest.mark.parametrize("name", ["many_clip_cov", "many_kl_cov", "clip_b", "gspo", "m2po", "tea"])
def test_statistics_of_a_batch_wait_for_nothing_and_can_be_captured(
    name: str, tmp_path: Path
) -> None:
    """With the loss that is given them, and in a group of one rank, which is NCCL's."""
    spec, batch = SPECS[name], make_batch(3, (40, 100), np.float32)
    host = {k: np.ascontiguousarray(x) for k, x in stats_arrays(batch).items()}
    given = {k: torch.from_numpy(x).cuda() for k, x in host.items()}
    losses = {k: given[k] for k in ("logp", "old_logp", "advantages", "mask", "token_ids")}
    losses |= {"entropy": given["entropy"], "rollout_logp": given["rollout_logp"]}
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:

        def call(group: object = None) -> tuple[torch.Tensor, ...]:
            known = ll.batch_stats(**given, spec=spec, seed=1, step=2, data_group=group)
            report = ll.covariance(*(given[k] for k in ("logp", "advantages", "mask")),
                                   data_group=group)  # fmt: skip
            out = ll.policy_loss(**losses, spec=spec, batch=known)
            return out.loss, known.selected, known.mean_logp, report.mean, report.correlation

        call()
        call(dist.group.WORLD)
        torch.cuda.set_sync_debug_mode("error")
        try:
            alone, shared = call(), call(dist.group.WORLD)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(alone, shared, strict=True):
            assert_bitwise_equal(one, other)
    finally:
        dist.destroy_process_group()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for scale in (0.9, 0.8):
        given["logp"].mul_(scale)
        host["logp"] = given["logp"].cpu().numpy()
        graph.replay()
        for one, other in zip(captured, call(), strict=True):
            assert_bitwise_equal(one, other)
        expected = ll.batch_stats(**host, spec=spec, seed=1, step=2)
        found = captured[1].cpu().numpy()
        np.testing.assert_array_equal(found[found >= 0], expected.selected)
        assert captured[2].item() == expected.mean_logp


@pytest.mark.parametrize("op", ["linear_token_stats", "linear_policy_loss"])
@pytest.mark.parametrize("capacity", [40, 64, None])
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "made again"])
def test_forward_and_backward_of_a_head_wait_for_nothing_and_can_be_captured(
    backend: str, op: str, capacity: int | None, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a capacity a graph takes all rows, as one for 64 does."""
    n, vocab = 64, 20_001
    if op == "linear_policy_loss" and backends.token_kernels_of(torch.zeros(1).cuda()).on_host:
        pytest.skip("the loss is made on the host")
    generator = torch.Generator().manual_seed(1)
    h, w = (torch.randn(k, 128, generator=generator).bfloat16().cuda() for k in (n, vocab))
    leaves = [x.requires_grad_() for x in (h, w)]
    t, mask = torch.randint(vocab, (n,)).cuda(), torch.arange(n).cuda() % 2 == 0
    advantages = torch.randn(n, generator=generator).cuda()
    if not planned:
        force(monkeypatch, Strategy(n, 4096, 0))

    def step(capacity: int | None) -> list[torch.Tensor]:
        if op == "linear_token_stats":
            stats = ll.linear_token_stats(
                h, w, t, mask=mask, active_capacity=capacity, backend=backend
            )
            loss, logp = (stats.logp * advantages).sum(), stats.logp
        else:
            out = ll.linear_policy_loss(
                h, w, t, None, advantages, mask, ll.presets["ppo"], active_capacity=capacity,
                backend=backend,
            )  # fmt: skip
            loss, logp = out.loss, out.logp
        return [logp.detach(), *torch.autograd.grad(loss, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(capacity or n)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(capacity or n)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(capacity)
    for shift in (1, 2):
        mask.copy_(mask.roll(shift))
        advantages.mul_(-0.5)
        graph.replay()
        for ours, right in zip(captured, step(None), strict=True):
            worst = (ours.double() - right.double()).abs().max()
            assert worst <= 0.02 * right.double().abs().max()
    if capacity == 40:
        mask.copy_(torch.arange(n).cuda() < 41)
        graph.replay()
        assert captured[0].isnan().any() and captured[2].isnan().any()
        mask.copy_(torch.arange(n).cuda() < 40)
        step(40)
        torch.cuda.synchronize()
        with pytest.raises(RuntimeError, match="active rows, 41, got 40"):
            step(40)
