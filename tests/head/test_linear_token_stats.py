"""linear_token_stats against the oracle, under every tiling, budget and sparsity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import reference
from tests.support import cases
from tests.support.heads import problem
from tests.support.plans import machine
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values


def run(
    h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, g: Any, leaves: Any, **options: Any
) -> tuple[ll.TokenStats, tuple[torch.Tensor, ...]]:
    stats = ll.linear_token_stats(h, w, t, **options)
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return stats, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, "1GiB", 700_000], ids=["default", "keep", "recompute"])
def test_against_the_oracle(dtype: torch.dtype, kind: str, budget: Any) -> None:
    n, hidden, vocab = 21, 24, 5003
    h, w, t = problem(1, n, hidden, vocab, dtype)
    g, mask = cases.upstream(1, n), cases.mask(1, n)
    options, leaves = cases.chain(kind, 1, n, vocab), [h, w]
    if "bias" in options:
        options["bias"].requires_grad_()
        leaves.append(options["bias"])
    # 16-bit tiles round the logits, as plain code does: compare against it, doubled.
    results = {
        backend: run(h, w, t, g, leaves, mask=mask, extras=EXTRAS, memory_budget=budget,
                     backend=backend, logits_dtype=dtype, **options)
        for backend in ("cpu", "torch")
    }  # fmt: skip
    stats, gradients = results["cpu"]
    plain, plain_gradients = results["torch"]
    exact = {
        k: v.detach().double().numpy() if torch.is_tensor(v) else v for k, v in options.items()
    }
    arrays = (cases.to_numpy(h), cases.to_numpy(w), t.numpy())
    truth = reference.linear_token_stats(*arrays, mask=mask.numpy(), **exact)
    for name in ("logp", "entropy", "lse"):
        ours = getattr(stats, name)
        assert_values(ours, truth[name], dtype, plain=getattr(plain, name))
        assert (ours[~mask] == 0).all()
    upstream = {
        name: x.numpy() for name, x in zip(("g_logp", "g_entropy", "g_lse"), g, strict=True)
    }
    expected = reference.linear_token_stats_backward(
        *arrays, mask=mask.numpy(), **upstream, **exact
    )
    for ours, plain_gradient, right in zip(gradients, plain_gradients, expected, strict=False):
        # One slack for all entries: where plain code happens to be lucky, ours need not be.
        worst = np.abs(cases.to_numpy(plain_gradient) - right).max()
        scale = 10 + 2 * worst / 1e-6 if dtype != torch.float64 else 100
        assert_gradients(ours, right, ours.dtype, scale=scale)


def test_float32_logits_from_bfloat16_inputs() -> None:
    """logits_dtype=float32 removes the rounding of bf16 tiles: values meet the float32 floor."""
    h, w, t = problem(2, 16, 64, 4200, torch.bfloat16)
    g = cases.upstream(2, 16)
    stats, gradients = run(h, w, t, g, (h, w), logits_dtype=torch.float32)
    arrays = (cases.to_numpy(h), cases.to_numpy(w), t.numpy())
    truth = reference.linear_token_stats(*arrays)
    for name in ("logp", "entropy", "lse"):
        # float32 products of 64 terms: a few ulp of |z| <= 80 beside the floor.
        assert_values(getattr(stats, name) / 4, truth[name] / 4, torch.float32)
    rounded = ll.linear_token_stats(h, w, t, logits_dtype=torch.bfloat16).logp
    assert np.abs(cases.to_numpy(rounded) - truth["logp"]).max() > 1e-3
    expected = reference.linear_token_stats_backward(
        *arrays, g_logp=g[0].numpy(), g_entropy=g[1].numpy(), g_lse=g[2].numpy()
    )
    for ours, right in zip(gradients, expected, strict=False):
        assert ours.dtype == torch.bfloat16
        assert_gradients(ours, right, torch.bfloat16, scale=50)


def test_tiling_does_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits in tiles of any width fold to the same bits as in one piece."""
    n, vocab = 6, 9001
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, vocab, generator=generator)
    t = cases.targets(3, n, vocab)
    whole = ll.token_stats(z, t, extras=EXTRAS)
    # A head whose product is exact: hidden picks column i of weight = z.T.
    for tile_bytes in (1, 6 * 4096 * 4, 1 << 30):
        machine(monkeypatch, tile_bytes=tile_bytes)
        tiled = ll.linear_token_stats(torch.eye(n), z.t().contiguous(), t, extras=EXTRAS)
        for a, b in zip(whole[:3], tiled[:3], strict=True):
            assert_bitwise_equal(a, b)
        for name in EXTRAS:
            assert_bitwise_equal(whole.extras[name], tiled.extras[name])


@pytest.mark.parametrize("rows", [1, 5, 1024])
def test_row_chunks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    h, w, t = problem(4, 23, 16, 5000, torch.float32)
    g, mask = cases.upstream(4, 23), cases.mask(4, 23)
    expected, right = run(h, w, t, g, (h, w), mask=mask)
    machine(monkeypatch, tile_rows=rows)
    stats, gradients = run(h, w, t, g, (h, w), mask=mask)
    assert_values(stats.logp, expected.logp, torch.float32)
    for ours, other in zip(gradients, right, strict=True):
        assert_gradients(ours, other, torch.float32, scale=10)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_without_gradient_change_nothing(data: st.DataObject) -> None:
    """Compaction: the gradient of some rows is the same with the others present or absent."""
    n = data.draw(st.integers(1, 12))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    budget = data.draw(st.sampled_from([None, "1GiB", 200_000]))
    h, w, t = problem(5, n, 8, 2500, torch.float32)
    t = torch.where(mask, t, torch.tensor(-7))
    g = torch.stack(cases.upstream(6, n)) * active
    _, (dh, dw) = run(h, w, t, g, (h, w), mask=mask, memory_budget=budget)
    rows = (mask & active).nonzero().squeeze(1)
    assert (dh[~(mask & active)] == 0).all()
    if len(rows) == 0:
        assert (dw == 0).all()
        return
    part = h.detach()[rows].requires_grad_()
    _, (dh_part, dw_part) = run(part, w, t[rows], g[:, rows], (part, w))
    assert_gradients(dh[rows], dh_part, torch.float32, scale=5)
    assert_gradients(dw, dw_part, torch.float32, scale=5)


def test_only_requested_gradients() -> None:
    h, w, t = problem(7, 5, 8, 2500, torch.float32)
    for leaf in (h, w):
        frozen = [x if x is leaf else x.detach() for x in (h, w)]
        stats = ll.linear_token_stats(*frozen, t)
        (gradient,) = torch.autograd.grad(stats.logp.sum(), leaf)
        assert gradient.shape == leaf.shape
    with torch.no_grad():
        assert not ll.linear_token_stats(h, w, t).logp.requires_grad


def test_expanded_upstream_and_accumulation() -> None:
    """.sum() gives an expanded gradient of stride 0; .grad accumulates as usual."""
    h, w, t = problem(8, 5, 8, 2500, torch.float32)
    ll.linear_token_stats(h, w, t).logp.sum().backward()
    once = w.grad.clone()
    ll.linear_token_stats(h, w, t).logp.sum().backward()
    assert_gradients(w.grad, 2 * once, torch.float32)


def test_padded_batch_is_the_packed_one() -> None:
    h, w, t = problem(9, 12, 8, 2500, torch.float32)
    packed = ll.linear_token_stats(h, w, t, extras=("argmax",))
    padded = ll.linear_token_stats(h.view(3, 4, 8), w, t.view(3, 4), extras=("argmax",))
    assert padded.logp.shape == padded.extras["argmax"].shape == (3, 4)
    assert_bitwise_equal(padded.logp, packed.logp)


def test_numpy() -> None:
    h, w, t = problem(10, 12, 8, 5000, torch.float32)
    arrays = [x.detach().numpy() for x in (h, w, t)]
    mask = cases.mask(10, 12).numpy()
    stats = ll.linear_token_stats(*arrays, mask=mask, bias=np.ones(5000), extras=EXTRAS)
    truth = reference.linear_token_stats(*arrays, mask=mask, bias=np.ones(5000))
    assert_values(stats.logp, truth["logp"], np.float32)
    assert (stats.logp[~mask] == 0).all()
    assert (stats.extras["argmax"] == np.where(mask, truth["argmax"], -1)).all()
    # A budget of a few rows a product gives the same, and one too small is refused.
    small = ll.linear_token_stats(*arrays, mask=mask, bias=np.ones(5000), memory_budget=30_000)
    assert_values(small.logp, truth["logp"], np.float32)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        ll.linear_token_stats(*arrays, memory_budget=100)
    arrays[0][5] = np.nan
    row = int(np.flatnonzero(mask)[-1])
    arrays[0][row] = np.nan
    with pytest.raises(ValueError, match=rf"row {5 if mask[5] else row}: its logits hold a NaN"):
        ll.linear_token_stats(*arrays, mask=mask)
    with pytest.raises(TypeError, match="all torch or all NumPy"):
        ll.linear_token_stats(arrays[0], w, arrays[2])


def test_bad_rows_keep_their_number_under_a_mask() -> None:
    h, w, t = problem(11, 8, 8, 2500, torch.float32)
    mask = torch.arange(8) != 2
    bad = h.detach().clone()
    bad[2] = float("nan")
    assert ll.linear_token_stats(bad, w, t, mask=mask).logp.isfinite().all()
    bad[5] = float("nan")
    with pytest.raises(ValueError, match="row 5: its logits hold a NaN"):
        ll.linear_token_stats(bad, w, t, mask=mask)
    t[6] = 2500
    with pytest.raises(ValueError, match=r"row 6: target 2500 is outside \[0, 2500\)"):
        ll.linear_token_stats(h, w, t, mask=mask)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tail_mass": 1.0}, ValueError, r"tail_mass must be in \[0, 1\)"),
        ({"tail_mass": 1e-9}, ValueError, "tail_mass must be 0 or >= 1e-5"),
        ({"memory_budget": 100}, ValueError, "memory_budget must be at least [0-9]+ bytes"),
        ({"memory_budget": "12 bananas"}, ValueError, "memory_budget must be bytes or like"),
        ({"logits_dtype": torch.float16}, ValueError, "must be None or torch.float32 with hidden"),
        ({"vocab_start": 5}, ValueError, "vocab_start must be 0 without vocab_group, got 5"),
        ({"vocab_group": "tp"}, TypeError, "vocab_group must be a torch.distributed process group"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    h, w, t = problem(12, 4, 8, 50, torch.float32)
    with pytest.raises(error, match=message):
        ll.linear_token_stats(h, w, t, **options)


def test_mismatched_inputs_are_named() -> None:
    h, w, t = problem(13, 4, 8, 50, torch.float32)
    with pytest.raises(TypeError, match="hidden and weight must share one dtype"):
        ll.linear_token_stats(h.bfloat16(), w, t)
    with pytest.raises(ValueError, match=r"weight \[V, H\]"):
        ll.linear_token_stats(h, w[:, :5], t)


def test_differentiating_twice_is_refused() -> None:
    h, w, t = problem(14, 4, 8, 50, torch.float32)
    loss = ll.linear_token_stats(h, w, t).logp.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = ll.linear_token_stats(h, w, t).logp.sum()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, w, create_graph=True)


def test_op_registration() -> None:
    """Schema, fake kernel and autograd registration agree, by torch's own checker."""
    from logitless.inputs.options import EXACT
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.rows.op import row_stats
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    h, w, t = problem(15, 4, 8, 50, torch.float32)
    rows = RowArguments(t, None, None, None, 1.0, 1.0, 0.0, "cpu")
    tiling = Tiling(4, 50, 0, torch.float32, 0, "", torch.float32)
    check_op(linear_stats, h, w, rows, True, EXACT, tiling, Shard(), None, None)
    check_op(row_stats, h @ w.t(), rows, True, False, Shard())
