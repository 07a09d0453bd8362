"""An adapter on the head: the head of the merged weight, and gradients of its factors, by every way
that a head is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import reference
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.heads import problem
from tests.support.plans import APART, CHUNKS, force, machine, took_one_pass
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

N, H, V = 21, 24, 5003
SCALES = (0.7, -1.5)
SPEC = ll.presets["ppo"]


def factors(seed: int, rank: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, H, generator=g), torch.randn(V, rank, generator=g) / 8
    return A.to(dtype).requires_grad_(), B.to(dtype).requires_grad_()


def adapters(dtype: torch.dtype = torch.float32) -> list[tuple[Any, Any, float]]:
    return [(*factors(i, rank, dtype), SCALES[i]) for i, rank in enumerate((3, 1))]


def plain(given: Any) -> list[Any]:
    return [(cases.to_numpy(A), cases.to_numpy(B), scale) for A, B, scale in given]


def leaves_of(given: Any) -> list[torch.Tensor]:
    return [x for A, B, _ in given for x in (A, B)]


def loss_of(stats: ll.TokenStats, g: Any) -> torch.Tensor:
    return (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()


def expected_gradients(h: Any, w: Any, t: Any, given: Any, g: Any, **options: Any) -> list[Any]:
    """Of hidden, weight, and A and B of each adapter."""
    known = plain(given)
    merged = reference.merged_weight(cases.to_numpy(w), known)
    upstream = dict(zip(("g_logp", "g_entropy", "g_lse"), (x.numpy() for x in g), strict=True))
    d_hidden, d_merged, _ = reference.linear_token_stats_backward(
        cases.to_numpy(h), merged, t.numpy(), **upstream, **options
    )
    found = [d_hidden, d_merged]
    for one in known:
        found += reference.adapter_backward(d_merged, one)
    return found


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 1_500_000], ids=["keep", "recompute"])
def test_against_the_merged_weight(dtype: torch.dtype, kind: str, budget: Any) -> None:
    h, w, t = problem(1, N, H, V, dtype)
    given, g, mask = adapters(), cases.upstream(1, N), cases.mask(1, N)
    with torch.no_grad():
        # what is masked may be anything
        h[~mask] = float("nan")
    options = cases.chain(kind, 1, N, V)
    chain = {"mask": mask.numpy(), **cases.numpy_chain(options)}
    leaves = [h, w, *leaves_of(given)]

    def run(backend: str) -> tuple[ll.TokenStats, Any]:
        stats = ll.linear_token_stats(
            h, w, t, mask=mask, adapter=given, memory_budget=budget, backend=backend, **options
        )
        # plain products with NaN rows have NaN gradients
        own = leaves if backend == "cpu" else []
        return stats, torch.autograd.grad(loss_of(stats, g), own) if own else ()

    stats, gradients = run("cpu")
    rounded, _ = run("torch")
    merged = reference.merged_weight(cases.to_numpy(w), plain(given))
    truth = reference.linear_token_stats(cases.to_numpy(h), merged, t.numpy(), **chain)
    narrow = dtype in (torch.bfloat16, torch.float16)
    for name in ("logp", "entropy", "lse"):
        off = np.abs(cases.to_numpy(getattr(rounded, name)) - truth[name]).max()
        near = np.full(N, off if narrow else 0.0) + truth[name]
        assert_values(getattr(stats, name) / 4, truth[name] / 4, dtype, plain=near / 4)
    expected = expected_gradients(h, w, t, given, g, **chain)
    for ours, right, leaf in zip(gradients, expected, leaves, strict=True):
        assert ours.dtype == leaf.dtype
        scale = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 1e-7}.get(dtype, 1e-5)
        assert np.abs(cases.to_numpy(ours) - right).max() <= scale * np.abs(right).max()


def test_the_gradients_are_those_of_finite_differences() -> None:
    """The oracle's own formula, along random directions."""
    rng = np.random.default_rng(0)
    h, w = rng.normal(size=(4, 5)), rng.normal(size=(7, 5))
    A, B, t = rng.normal(size=(2, 5)), rng.normal(size=(7, 2)), np.array([0, 3, 6, 2])

    def value(A: Any, B: Any) -> float:
        merged = reference.merged_weight(w, [(A, B, 0.3)])
        return float(reference.linear_token_stats(h, merged, t)["logp"].sum())

    merged = reference.merged_weight(w, [(A, B, 0.3)])
    _, d_merged, _ = reference.linear_token_stats_backward(
        h, merged, t, g_logp=np.ones(4), g_entropy=0.0, g_lse=0.0
    )
    d_a, d_b = reference.adapter_backward(d_merged, (A, B, 0.3))
    for way, d in ((rng.normal(size=A.shape), d_a), (rng.normal(size=B.shape), d_b)):
        e = 1e-5
        up, down = (value(A + x, B) if d is d_a else value(A, B + x) for x in (e * way, -e * way))
        assert abs((up - down) / (2 * e) - (way * d).sum()) < 1e-7


MASK = cases.mask(2, N)
DATA = {
    name: shift + torch.randn(N, generator=torch.Generator().manual_seed(seed))
    for seed, (name, shift) in enumerate((("old_logp", -8.0), ("advantages", 0.0)))
}


def policy(h: Any, w: Any, t: Any, given: Any, **options: Any) -> ll.LinearPolicyLossOutput:
    return ll.linear_policy_loss(
        h, w, t, **DATA, mask=MASK, spec=options.pop("spec", SPEC), adapter=given,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("extras", [(), ("argmax", "sum_p2")])
@pytest.mark.parametrize("way", [*CHUNKS.values(), APART], ids=[*CHUNKS, "apart"])
def test_policy_loss(
    monkeypatch: pytest.MonkeyPatch, way: Strategy, extras: Any, dtype: torch.dtype
) -> None:
    h, w, t = problem(2, N, H, V, dtype)
    given = adapters()
    leaves = [h, w, *leaves_of(given)]
    right = policy(h, w, t, given, backend="torch", extras=extras)
    expected = torch.autograd.grad(right.loss, leaves)
    force(monkeypatch, way)
    ours = policy(h, w, t, given, extras=extras)
    assert took_one_pass(ours) == bool(way.chunk_rows)
    found = torch.autograd.grad(2.0 * ours.loss, leaves)
    slack = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert set(ours.extras) == set(extras)
    loss, exact = (float(x.loss.detach()) for x in (ours, right))
    assert abs(loss - exact) <= slack * abs(exact) + slack
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert float((a.double() - 2 * b.double()).abs().max()) <= 2 * slack * float(b.abs().max())


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_frozen_weight_gets_no_product(monkeypatch: pytest.MonkeyPatch, one_pass: bool) -> None:
    """Nothing of [V, H] is made, and B's gradient is that beside a trained weight."""
    h, w, t = problem(3, N, H, V, torch.float32)
    given = adapters()
    force(monkeypatch, CHUNKS["whole"] if one_pass else APART)

    def gradients(weight: torch.Tensor) -> Any:
        loss = policy(h, weight, t, given).loss
        return torch.autograd.grad(loss, [h, *leaves_of(given)])

    expected, made = gradients(w), []
    from logitless.ops.head import backward, policy_op

    own = backward.weight_gradient

    def counted(like: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(like.shape)
        return own(like, *rest)

    for module in (policy_op, backward):
        monkeypatch.setattr(module, "weight_gradient", counted)
    for a, b in zip(gradients(w.detach()), expected, strict=True):
        assert_bitwise_equal(a, b)
    assert made == [(V, 4)]


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(0, 12), vocab=st.integers(1, 2500), rank=st.integers(1, 9),
    tile=st.integers(1, 8), seed=st.integers(0, 99), columns=st.sampled_from([1, 1 << 14, 1 << 20]),
)  # fmt: skip
def test_any_shape_and_tiling(
    n: int, vocab: int, rank: int, tile: int, seed: int, columns: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    h, w, A, B = (
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((n, 7), (vocab, 7), (rank, 7), (vocab, rank))
    )
    t = torch.randint(vocab, (n,), generator=g)
    up = torch.randn(3, n, generator=g)
    with pytest.MonkeyPatch.context() as patch:
        machine(patch, tile_rows=tile, tile_bytes=columns)
        stats = ll.linear_token_stats(h, w, t, adapter=(A, B, 0.5))
        ours = torch.autograd.grad(loss_of(stats, up), (h, w, A, B))
    merged = ll.linear_token_stats(h, w + 0.5 * B @ A, t)
    right = torch.autograd.grad(loss_of(merged, up), (h, w, A, B))
    assert_values(stats.logp / 10, merged.logp / 10, torch.float64)
    for a, b in zip(ours, right, strict=True):
        assert_gradients(a, b, torch.float64, scale=1e3)


def test_several_adapters_are_one_of_their_ranks() -> None:
    h, w, t = problem(4, N, H, V, torch.float64)
    (A, B, a), (C, D, c) = adapters(torch.float64)
    together = (torch.cat((A * a, C * c)), torch.cat((B, D), 1), 1.0)
    ways = ([(A, B, a), (C, D, c)], together)
    one, other = (ll.linear_token_stats(h, w, t, adapter=x) for x in ways)
    assert_values(one.logp, other.logp, torch.float64)
    with pytest.raises(ValueError, match=r"a list of at least one, got \[\]; None is none"):
        ll.linear_token_stats(h, w, t, adapter=[])


def test_rows_from_their_largest_entries() -> None:
    """tail_mass > 0: peaked rows are served from few rows of weight and B."""
    h, w, t = problem(5, N, H, V, torch.float32)
    with torch.no_grad():
        h.mul_(4)
    given, g = adapters(), cases.upstream(5, N)
    leaves = [h, w, *leaves_of(given)]
    exact = ll.linear_token_stats(h, w, t, adapter=given)
    ours = ll.linear_token_stats(h, w, t, adapter=given, tail_mass=1e-5, extras=("dropped_mass",))
    assert int((ours.extras["dropped_mass"] <= 1e-5).sum()) > 0
    assert_bitwise_equal(ours.logp, exact.logp)
    right = torch.autograd.grad(loss_of(exact, g), leaves)
    for a, b in zip(torch.autograd.grad(loss_of(ours, g), leaves), right, strict=True):
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max())
    losses = [policy(h, w, t, given, tail_mass=x) for x in (0.0, 1e-5)]
    pairs = zip(*(torch.autograd.grad(x.loss, leaves) for x in losses), strict=True)
    for b, a in pairs:
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max())


@pytest.mark.parametrize("weight_grad", ["dense", "rows"])
@pytest.mark.parametrize("size", [3, 900])
def test_sets_of_a_sampling_mask(size: int, weight_grad: str) -> None:
    h, w, t = problem(6, N, H, V, torch.float32)
    generator = torch.Generator().manual_seed(6)
    drawn = torch.cat([t[:, None], torch.randint(V, (N, size), generator=generator)], 1)
    sets = ll.SamplingMask.from_lists([sorted(set(ids)) for ids in drawn.tolist()])
    (A, B, scale), g = adapters()[0], cases.upstream(6, N)
    options: dict[str, Any] = {"sampling_mask": sets, "weight_grad": weight_grad}
    ours = ll.linear_token_stats(h, w, t, adapter=(A, B, scale), **options)
    merged = ll.linear_token_stats(h, w + scale * B @ A, t, sampling_mask=sets)
    assert_values(ours.logp / 10, merged.logp / 10, torch.float32)
    found = torch.autograd.grad(loss_of(ours, g), (h, w, A, B))
    for a, b in zip(found, torch.autograd.grad(loss_of(merged, g), (h, w, A, B)), strict=True):
        assert_gradients(a.to_dense() if a.is_sparse else a, b, torch.float32, scale=30)


def test_selected_ids() -> None:
    h, w, t = problem(7, N, H, V, torch.float64)
    A, B, scale = adapters(torch.float64)[0]
    ids = torch.tensor([0, 17, V - 1])
    ours = ll.linear_token_stats(h, w, t, adapter=(A, B, scale), selected_ids=ids)
    merged = ll.linear_token_stats(h, w + scale * B @ A, t, selected_ids=ids)
    assert_values(ours.selected, merged.selected, torch.float64)
    pairs = (torch.autograd.grad(x.selected.sum(), (h, w, A, B)) for x in (ours, merged))
    for a, b in zip(*pairs, strict=True):
        assert_gradients(a, b, torch.float64, scale=1e3)


def test_numpy() -> None:
    h, w, t = problem(8, N, H, V, torch.float32)
    given = adapters()
    arrays = [x.detach().numpy() for x in (h, w, t)]
    known = [(A.detach().numpy(), B.detach().numpy(), s) for A, B, s in given]
    ids = torch.tensor([3, 5])
    sets = ll.SamplingMask.from_lists([[int(i), 7] if i != 7 else [7] for i in t])
    for options in ({}, {"sampling_mask": sets}):
        ours = ll.linear_token_stats(*arrays, adapter=known, **options)
        right = ll.linear_token_stats(h, w, t, adapter=given, **options)
        assert_values(ours.logp / 4, right.logp / 4, torch.float32)
    ours = ll.linear_token_stats(*arrays, adapter=known, selected_ids=ids.numpy())
    right = ll.linear_token_stats(h, w, t, adapter=given, selected_ids=ids)
    assert_values(ours.selected / 4, right.selected / 4, torch.float32)


@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.9}], ids=["whole", "top"])
def test_sample(options: dict[str, Any]) -> None:
    h, w, _ = problem(9, N, H, V, torch.float64)
    given = adapters(torch.float64)
    merged = w + sum(scale * B @ A for A, B, scale in given)
    draw: dict[str, Any] = {"seed": 1, "step": 2, "row_ids": torch.arange(N), **options}
    ours = ll.linear_sample(h, w, adapter=given, **draw)
    right = ll.linear_sample(h, merged, **draw)
    assert torch.equal(ours.token, right.token)
    assert_values(ours.logp, right.logp, torch.float64)
    assert_values(ours.kept_logp, right.kept_logp, torch.float64)


def test_compiled() -> None:
    h, w, t = problem(10, N, H, V, torch.float32)
    given = adapters()
    leaves = [h, w, *leaves_of(given)]

    def f(*x: torch.Tensor) -> torch.Tensor:
        both = [(x[2], x[3], SCALES[0]), (x[4], x[5], SCALES[1])]
        stats = ll.linear_token_stats(x[0], x[1], t, adapter=both)
        drawn = ll.linear_sample(x[0], x[1], adapter=both, seed=1, step=2, row_ids=torch.arange(N))
        return (stats.logp + stats.entropy).sum() + policy(*x[:2], t, both).loss + drawn.logp.sum()

    eager = f(*leaves)
    loss = torch.compile(f, fullgraph=True, backend="aot_eager")(*leaves)
    assert_bitwise_equal(loss, eager)
    pairs = (torch.autograd.grad(x, leaves) for x in (loss, eager))
    for a, b in zip(*pairs, strict=True):
        assert_gradients(a, b, torch.float32, scale=5)


def test_under_autocast() -> None:
    h, w, t = problem(11, N, H, V, torch.float32)
    given = adapters()
    with torch.autocast("cpu", torch.bfloat16):
        ours = ll.linear_token_stats(h, w, t, adapter=given)
    found = torch.autograd.grad(ours.logp.sum(), leaves_of(given))
    right = ll.linear_token_stats(h.bfloat16(), w.bfloat16(), t, adapter=given)
    for a, b in zip(found, torch.autograd.grad(right.logp.sum(), leaves_of(given)), strict=True):
        assert a.dtype == torch.float32
        assert_bitwise_equal(a, b)


def test_check() -> None:
    h, w, t = problem(12, N, H, V, torch.float32)
    batch = {"hidden": h.detach(), "targets": t}
    assert ll.check(w.detach(), batch, adapter=adapters()).ok


def test_the_plan_counts_it() -> None:
    args = (4096, 896, 151936, "bfloat16")
    bare, with_it = (ll.plan(*args, "16GiB", adapter_rank=rank) for rank in (0, 16))
    assert with_it.products == pytest.approx(bare.products + 3 * 16 / 896)
    assert with_it.total_bytes > bare.total_bytes
    frozen = ll.plan(*args, "16GiB", adapter_rank=16, gradients=("hidden",))
    assert frozen.products == pytest.approx(2 + 3 * 16 / 896)
    assert frozen.expected_seconds < bare.expected_seconds


def test_what_is_not_built_is_named() -> None:
    h, w, t = problem(13, N, H, V, torch.float32)
    with pytest.raises(NotImplementedError, match="batch_invariant is not built with an adapter"):
        ll.linear_token_stats(h, w, t, adapter=adapters(), batch_invariant=True)
    A, B, s = adapters()[0]
    with pytest.raises(ValueError, match=r"adapter\[1\]'s A must be \[r, H\] = \[r, 24\]"):
        ll.linear_token_stats(h, w, t, adapter=[(A, B, s), (A[:, 1:], B, s)])
