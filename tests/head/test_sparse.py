"""tail_mass > 0: which rows are served from their largest entries, and that the bound holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import _core, reference
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases, sparse_cases
from tests.support.plans import force
from tests.support.sparse_cases import ROUNDING, off, problem, upstream
from tests.support.tolerances import assert_bitwise_equal

ISAS = _core.runtime.build_info()["isas"]


def of_logits(
    z: torch.Tensor,  # [N, V]
    t: torch.Tensor,
    g: Any,
    **options: Any,
) -> tuple[ll.TokenStats, torch.Tensor]:
    """Statistics and d(logits) of a head whose product is exact: hidden is the identity."""
    weight = z.t().contiguous().requires_grad_()
    hidden = torch.eye(len(z), dtype=z.dtype)
    extras = ("dropped_mass", "dropped_entropy")
    stats = ll.linear_token_stats(hidden, weight, t, extras=extras, **options)
    g = (torch.as_tensor(x) for x in g)
    terms = zip((stats.logp, stats.entropy, stats.lse), g, strict=True)
    loss = torch.stack([(value.double() * x).sum() for value, x in terms]).sum()
    return stats, torch.autograd.grad(loss, weight)[0].t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tail_mass", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("entries", [64, 192])
@pytest.mark.parametrize("kind", sparse_cases.KINDS)
def test_against_the_oracle(kind: str, entries: int, tail_mass: float, dtype: torch.dtype) -> None:
    """Same rows served, same entries kept, same gradient; and never further off than the bound."""
    z, t = sparse_cases.rows(kind, 1, 12, 1301)
    z = z.to(dtype)
    slack = ROUNDING[dtype]
    for g in sparse_cases.signs(2, len(z)):
        truth = reference.support_backward(
            z.numpy(), t.numpy(), tail_mass=tail_mass, keep=entries, **upstream(g)
        )
        exact, _ = reference.token_stats_backward(z.numpy(), t.numpy(), **upstream(g))
        stats, ours = of_logits(z, t, g, tail_mass=tail_mass, tail_entries=entries)
        size = sum(np.abs(x) for x in g)[:, None]
        # Rows at the very edge may fall on either side.
        edge = np.abs(truth["mass"] - tail_mass) <= slack
        unknown = np.isinf(cases.to_numpy(stats.extras["dropped_entropy"]))
        edge |= np.isinf(truth["entropy"]) != unknown
        # Of equal entries p = e^-H, or nearly, and a rounding decides whether one more step is
        # taken.
        mass = cases.to_numpy(stats.extras["dropped_mass"])
        if entries > 64:
            edge |= np.abs(mass - truth["mass"]) > slack
        assert kind in ("plateau", "all equal", "edge of the sign") or not edge.any()
        np.testing.assert_allclose(mass[~edge], truth["mass"][~edge], atol=slack)
        known = np.isfinite(truth["entropy"]) & ~edge
        entropy = cases.to_numpy(stats.extras["dropped_entropy"])
        np.testing.assert_allclose(entropy[known], truth["entropy"][known], atol=20 * slack)
        error = np.abs(cases.to_numpy(ours) - truth["dlogits"])
        assert (error <= 20 * slack * size)[~edge].all()
        nothing = truth["served"] & ~edge
        for i in np.flatnonzero(nothing):
            assert set(np.flatnonzero(cases.to_numpy(ours[i]))) <= set(truth["kept"][i])
        # ||error||_1 <= bound + rounding: of the entries, and of what was measured
        l1 = np.abs(cases.to_numpy(ours) - exact).sum(1)
        assert (l1 <= truth["bound"] + 100 * slack * size[:, 0])[nothing].all()
        assert (l1 <= 100 * slack * size[:, 0])[~truth["served"] & ~edge].all()


@given(
    st.sampled_from(sparse_cases.KINDS), st.integers(0, 2**31), st.integers(1, 5000),
    st.floats(1e-5, 0.9), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.3, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_bound_holds(
    kind: str, seed: int, vocab: int, tail_mass: float, g_logp: float, g_entropy: float, heat: float
) -> None:
    """From the public numbers alone: extras give the bound, 0 where a row is served exactly."""
    z, t = sparse_cases.rows(kind, seed, 5, max(vocab, 8))
    g = (np.full(5, g_logp), np.full(5, g_entropy), np.zeros(5))
    _, exact = of_logits(z, t, g, temperature=heat)
    stats, ours = of_logits(z, t, g, temperature=heat, tail_mass=tail_mass)
    l1 = (ours - exact).abs().sum(1)
    mass, entropy = (stats.extras[k] for k in ("dropped_mass", "dropped_entropy"))
    of_entropy = torch.where(entropy.isinf() | (g_entropy == 0), 0.0, abs(g_entropy) * entropy)
    served = (mass <= tail_mass) & (entropy.isfinite() | (g_entropy == 0))
    bound = torch.where(served, abs(g_logp) * mass + of_entropy, 0.0) / heat
    assert (l1 <= bound + 1e-11 * (1 + 1 / heat)).all()
    assert (torch.where(served, mass, 0.0) <= tail_mass).all()


def test_a_row_keeps_as_few_steps_as_it_needs() -> None:
    """Rows whose mass sits in 40, 100, 200 and 500 equal entries."""
    sizes = (40, 100, 200, 500)
    z = torch.full((4, 3000), -40.0, dtype=torch.float64)
    for row, size in zip(z, sizes, strict=True):
        row[:size] = 0.0
    t, g = torch.zeros(4, dtype=torch.int64), (np.ones(4), np.zeros(4), np.zeros(4))
    for entries, served in ((64, 1), (128, 2), (256, 3), (512, 4)):
        stats, ours = of_logits(z, t, g, tail_mass=1e-3, tail_entries=entries)
        few = stats.extras["dropped_mass"] <= 1e-3
        assert few.tolist() == [i < served for i in range(4)]
        counts = (ours != 0).sum(1).tolist()
        assert counts == [*sizes[:served], *[3000] * (4 - served)]


def gradients(
    h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, g: Any, leaves: Any, **options: Any
) -> tuple[ll.TokenStats, tuple[torch.Tensor, ...]]:
    stats = ll.linear_token_stats(h, w, t, **options)
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return stats, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_option_of_the_head(kind: str, dtype: torch.dtype) -> None:
    """Values are the exact path's bits; gradients are near it, little is dropped."""
    n, vocab = 37, 4133
    h, w, t = problem(3, n, 48, vocab, dtype)
    g, mask, options = cases.upstream(3, n), cases.mask(3, n), cases.chain(kind, 3, n, vocab)
    leaves = [h, w]
    if "bias" in options:
        options["bias"].requires_grad_()
        leaves.append(options["bias"])
    exact, right = gradients(h, w, t, g, leaves, mask=mask, **options)
    ours, close = gradients(h, w, t, g, leaves, mask=mask, tail_mass=1e-3, **options)
    for a, b in zip(exact[:3], ours[:3], strict=True):
        assert_bitwise_equal(a, b)
    for a, b in zip(close, right, strict=True):
        assert off(a, b) <= {torch.bfloat16: 8e-3}.get(dtype, 2e-3)
    assert (close[0][~mask] == 0).all()


def test_no_tail_is_the_exact_path() -> None:
    h, w, t = problem(4, 20, 32, 3000, torch.float32)
    g = cases.upstream(4, 20)
    extras = ("dropped_mass", "argmax", "dropped_entropy")
    plain, right = gradients(h, w, t, g, (h, w))
    stats, ours = gradients(h, w, t, g, (h, w), tail_mass=0.0, extras=extras)
    for a, b in zip(plain[:3], stats[:3], strict=True):
        assert_bitwise_equal(a, b)
    # the same products; their bits may depend on where memory lies
    for a, b in zip(ours, right, strict=True):
        assert off(a, b) <= 1e-6
    assert tuple(stats.extras) == extras
    assert (stats.extras["dropped_mass"] == 0).all()
    assert (stats.extras["dropped_entropy"] == 0).all()


def test_an_exact_call_drops_nothing_of_an_impossible_target_either() -> None:
    h, w = torch.randn(3, 8, requires_grad=True), torch.randn(50, 8)
    bias = torch.zeros(50)
    bias[7] = -float("inf")
    stats = ll.linear_token_stats(
        h, w, torch.full((3,), 7), bias=bias, extras=("dropped_mass", "dropped_entropy")
    )
    assert stats.logp.isneginf().all()
    for value in stats.extras.values():
        assert not value.requires_grad
        assert (value == 0).all()


def test_a_whole_vocabulary_that_fits_drops_nothing() -> None:
    """V < 64: every row is served, and what lies below the margin is all that is dropped."""
    h, w, t = problem(5, 30, 16, 50, torch.float64)
    g = cases.upstream(5, 30)
    options = {"tail_mass": 1e-5, "extras": ("dropped_mass", "dropped_entropy")}
    stats, ours = gradients(h, w, t, g, (h, w), **options)
    _, right = gradients(h, w, t, g, (h, w))
    assert (stats.extras["dropped_mass"] <= 1e-5).all()
    assert stats.extras["dropped_entropy"].isfinite().all()
    for a, b in zip(ours, right, strict=True):
        assert off(a, b) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads_or_budget(dtype: torch.dtype) -> None:
    """Rows served from their entries: every sum has one order. The head's own product is exact
    here, since hidden is the identity."""
    z, t = sparse_cases.rows("peaked", 6, 24, 5000)
    hidden = torch.eye(24, dtype=dtype).requires_grad_()
    weight = z.t().to(dtype).contiguous().requires_grad_()
    g = tuple(x.abs() + 0.1 for x in cases.upstream(6, 24))
    options: dict[str, Any] = {"tail_mass": 0.5, "extras": ("dropped_mass", "dropped_entropy")}
    small = ll.plan(24, 24, 5000, dtype, tail_mass=0.5, one_pass=False)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for budget in (None, small.total_bytes):
                stats, found = gradients(
                    hidden, weight, t, g, (hidden, weight), memory_budget=budget, **options
                )
                results.append(found)
    finally:
        torch.set_num_threads(threads)
    assert (stats.extras["dropped_mass"] <= 0.5).all()
    assert stats.extras["dropped_entropy"].isfinite().all()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bitwise_equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_that_are_kept_change_no_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows by entries and of dense ones, in one call, with all, some and no columns kept."""
    z, t = sparse_cases.rows("zipf", 8, 24, 5000)
    # the head's own product is exact, since hidden is the identity
    hidden = torch.eye(24, dtype=dtype).requires_grad_()
    weight = z.t().to(dtype).contiguous().requires_grad_()
    results = []
    for kept in (0, 4096, 5000):
        force(monkeypatch, Strategy(16, 2048, kept))
        stats, found = gradients(
            hidden, weight, t, cases.upstream(8, 24), (hidden, weight), tail_mass=1e-2,
            extras=("dropped_mass",),
        )  # fmt: skip
        results.append(found)
    served = stats.extras["dropped_mass"] <= 1e-2
    assert 0 < int(served.sum()) < 24
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert off(a, b) <= (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("tail_mass", [1e-3, 0.1])
@pytest.mark.parametrize("kind", sparse_cases.KINDS)
def test_rows_keep_the_same_entries_where_logits_stay(
    kind: str, tail_mass: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 of each row and then more of those that need them, or as many as may be of all at once."""
    z, t = sparse_cases.rows(kind, 9, 24, 5000)
    g = tuple(x.numpy() for x in cases.upstream(9, 24))
    results = []
    for kept in (0, 4096, 5000):
        force(monkeypatch, Strategy(16, 2048, kept))
        stats, ours = of_logits(z, t, g, tail_mass=tail_mass)
        mass, entropy = (stats.extras[name] for name in ("dropped_mass", "dropped_entropy"))
        # the sums of dense rows may have another order
        served = (mass <= tail_mass) & entropy.isfinite()
        results.append((mass, entropy, ours.where(served[:, None], 0.0)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bitwise_equal(a, b)


def test_every_instruction_set_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, t = problem(7, 16, 40, 3000, torch.float32)
    results = []
    for name in ISAS:
        monkeypatch.setenv("LOGITLESS_ISA", name)
        results.append(gradients(h, w, t, cases.upstream(7, 16), (h, w), tail_mass=1e-3)[1])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert off(a, b) <= 1e-5


def test_batch_invariant() -> None:
    h, w, t = problem(8, 40, 64, 5000, torch.float32)
    g = tuple(x.abs() + 0.1 for x in cases.upstream(8, 40))
    options: dict[str, Any] = {"tail_mass": 1e-3, "batch_invariant": True}
    _, whole = gradients(h, w, t, g, (h,), **options)
    some = torch.tensor([30, 4, 5, 17])
    part = tuple(x[some] for x in g)
    _, alone = gradients(h[some], w, t[some], part, (h,), **options)
    assert_bitwise_equal(whole[0][some], alone[0][some])


def test_masked_and_inactive_rows() -> None:
    """NaN under the mask stays there; rows without a gradient get zeros; no row at all is fine."""
    h, w, t = problem(9, 20, 32, 3000, torch.float32)
    mask = cases.mask(9, 20)
    bad = torch.where(mask[:, None], h.detach(), float("nan")).requires_grad_()
    g = cases.upstream(9, 20)
    _, ours = gradients(bad, w, t, g, (bad, w), mask=mask, tail_mass=1e-3)
    assert ours[0].isfinite().all()
    assert ours[1].isfinite().all()
    quiet = sum(x.abs() for x in g) == 0
    assert (ours[0][quiet] == 0).all()
    for none in (torch.zeros(20, dtype=torch.bool), None):
        zero = torch.zeros(3, 20)
        _, nothing = gradients(h, w, t, zero, (h, w), mask=none, tail_mass=1e-3)
        assert all((x == 0).all() for x in nothing)


def test_frozen_sides() -> None:
    h, w, t = problem(10, 20, 32, 3000, torch.float32)
    g = cases.upstream(10, 20)
    _, both = gradients(h, w, t, g, (h, w), tail_mass=1e-3)
    _, only_h = gradients(h, w.detach(), t, g, (h,), tail_mass=1e-3)
    _, only_w = gradients(h.detach(), w, t, g, (w,), tail_mass=1e-3)
    assert_bitwise_equal(both[0], only_h[0])
    assert_bitwise_equal(both[1], only_w[0])


def test_autocast_and_compile() -> None:
    h, w, t = problem(11, 20, 32, 3000, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = ll.linear_token_stats(h, w, t, tail_mass=1e-3)
    stats.logp.sum().backward()
    narrow = [x.detach().bfloat16().requires_grad_() for x in (h, w)]
    ll.linear_token_stats(*narrow, t, tail_mass=1e-3).logp.sum().backward()
    for wide, half in zip((h, w), narrow, strict=True):
        assert wide.grad is not None
        assert half.grad is not None
        assert_bitwise_equal(wide.grad, half.grad.float())

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        stats = ll.linear_token_stats(h, w, t, tail_mass=1e-3)
        return (stats.logp + stats.entropy).sum()

    ours = torch.autograd.grad(compiled(h, w), (h, w))
    stats = ll.linear_token_stats(h, w, t, tail_mass=1e-3)
    right = torch.autograd.grad((stats.logp + stats.entropy).sum(), (h, w))
    for a, b in zip(ours, right, strict=True):
        assert_bitwise_equal(a, b)


def test_opcheck() -> None:
    from logitless.inputs.options import Tail
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    h, w, t = problem(12, 9, 16, 3000, torch.float32)
    rows = RowArguments(t, torch.arange(9) % 3 > 0, None, None, 1.0, 1.0, 0.0, "cpu")
    tiling = Tiling(4, 2048, 0, torch.float32, 0, "", torch.float32)
    check_op(linear_stats, h, w, rows, True, Tail(1e-2, 128), tiling, Shard(), None, None)


def test_a_loss_of_no_token() -> None:
    """None went without being served."""
    h, w, t = problem(12, 9, 16, 3000, torch.float32)
    data = (t, torch.zeros(9), torch.ones(9), torch.zeros(9, dtype=torch.bool))
    out = ll.linear_policy_loss(h, w, *data, ll.presets["ppo"], tail_mass=1e-2)
    found = [float(x) for name, x in out.metrics.items() if "/support_" in name]
    assert found == [0.0, 0.0, 1.0, 0.0]
    assert all((x == 0).all() for x in torch.autograd.grad(out.loss, (h, w)))


def test_plan_counts_what_is_kept() -> None:
    exact = ll.plan(1000, 64, 5000, "bfloat16", one_pass=False)
    sparse = ll.plan(1000, 64, 5000, "bfloat16", one_pass=False, tail_mass=1e-3)
    assert exact.support_bytes == 0
    assert sparse.support_bytes >= 1000 * 2 * 512 * 12
    assert sparse.mode == "support"
    assert "512 largest entries" in str(sparse)
    more = ll.plan(1000, 64, 5000, "bfloat16", one_pass=False, tail_mass=1e-3, tail_entries=1024)
    assert more.support_bytes >= 1000 * 2048 * 12
    assert "1024 largest entries" in str(more)
    with pytest.raises(ValueError, match="memory_budget must be at least") as error:
        ll.plan(1000, 64, 5000, "bfloat16", 1000, one_pass=False, tail_mass=1e-3)
    found = re.search(
        r"at least (\d+) bytes \((\d+) of them for tail_entries=512\)", str(error.value)
    )
    assert found is not None
    least = int(found[1])
    assert int(found[2]) == sparse.support_bytes
    assert ll.plan(1000, 64, 5000, "bfloat16", least, tail_mass=1e-3).total_bytes <= least


def test_who_does_not_serve_it_says_so() -> None:
    h, w, t = problem(13, 4, 8, 100, torch.float32)
    with pytest.raises(NotImplementedError, match="tail_mass is not built for backend 'torch'"):
        ll.linear_token_stats(h, w, t, tail_mass=1e-3, backend="torch")
    arrays = (x.detach().numpy() for x in (h, w, t))
    with pytest.raises(ValueError, match="tail_mass must be left at its default"):
        ll.linear_token_stats(*arrays, tail_mass=1e-3)
    with pytest.raises(ValueError, match="extras: unknown name 'dropped_mass'"):
        ll.token_stats(h, t, extras=("dropped_mass",))
