"""sampling_mask: rows renormalised over sets of tokens, against the oracle and plain torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import _core, reference
from logitless.ops.head.sets import SetProducts, set_logits
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.arguments import RowArguments
from logitless.ops.rows.sets import MaskedRows, set_stats
from logitless.ops.sharding.shard import Shard
from tests.support import cases
from tests.support.heads import B, T, V, batch, inputs_of, spec_of
from tests.support.losses.loss_specs import SPECS
from tests.support.mask_cases import KINDS, mask_of, sets
from tests.support.opcheck import check_op
from tests.support.plans import machine
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

ISAS = _core.runtime.build_info()["isas"]
FULL = ("kept_mass", "full_logp", "full_entropy")
# A product of hidden x weight: float32 errs by this much of a logit of size 1 and H terms.
SLACK = {torch.float32: 10.0, torch.float64: 10.0, torch.bfloat16: 10.0, torch.float16: 10.0}


def head(seed: int, n: int, vocab: int, dtype: torch.dtype, hidden: int = 24) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, hidden, generator=g) for size in (n, vocab)]
    return [x.to(dtype).requires_grad_() for x in made]


def gradients(stats: ll.TokenStats, g: Any, leaves: Any) -> tuple[torch.Tensor, ...]:
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return torch.autograd.grad(loss, leaves)


def oracle(h: Any, w: Any, t: Any, g: Any, **options: Any) -> tuple[Any, Any]:
    arrays = [cases.to_numpy(x) for x in (h, w, t)]
    names = ("g_logp", "g_entropy", "g_lse")
    up = {name: cases.to_numpy(x) for name, x in zip(names, g, strict=True)}
    stats = reference.linear_token_stats(*arrays, **options)
    return stats, reference.linear_token_stats_backward(*arrays, **up, **options)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("chain", cases.CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(
    kind: str, chain: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, every extra and all gradients, by gathered rows and by dense products."""
    machine(monkeypatch, gathered=1e-9 if dense else 1e18)
    n, vocab, dtype = 11, 4133, torch.float64
    h, w = head(3, n, vocab, dtype)
    t, mask, g = cases.targets(3, n, vocab), cases.mask(3, n), cases.upstream(3, n)
    options, leaves = cases.chain(chain, 3, n, vocab), [h, w]
    if "bias" in options:
        options["bias"] = options["bias"].double().requires_grad_()
        leaves.append(options["bias"])
    ids = sets(kind, 4, t, vocab)
    stats = ll.linear_token_stats(
        h, w, t, mask=mask, sampling_mask=ll.SamplingMask.from_lists(ids),
        extras=(*FULL, *EXTRAS), **options,
    )  # fmt: skip
    assert tuple(stats.extras) == (*FULL, *EXTRAS)
    detached = {k: v.detach() if torch.is_tensor(v) else v for k, v in options.items()}
    plain = cases.numpy_chain(detached)
    given = {"mask": mask.numpy(), **plain}
    truth, right = oracle(h, w, t, g, sets=ids, **given)
    whole, _ = oracle(h, w, t, g, **given)
    logits = cases.to_numpy(h) @ cases.to_numpy(w).T
    truth["kept_mass"] = reference.kept_mass(logits, ids, **plain) * mask.numpy()
    truth |= {f"full_{name}": whole[name] for name in ("logp", "entropy")}
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name) / 10, truth[name] / 10, dtype)
    for name, found in stats.extras.items():
        if name == "argmax":
            assert (found[mask].numpy() == truth[name][mask.numpy()]).all()
        else:
            np.testing.assert_allclose(found, truth[name], rtol=1e-9, atol=1e-11, err_msg=name)
            assert not found.requires_grad
    for ours, expected in zip(gradients(stats, g, leaves), right, strict=False):
        assert_gradients(ours, expected, dtype, scale=100)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far from the truth as plain code in the same dtype, or nearer."""
    machine(monkeypatch, gathered=1e-9 if dense else 1e18)
    n, vocab = 37, 4133
    h, w = head(5, n, vocab, dtype, hidden=70)
    t, g = cases.targets(5, n, vocab), cases.upstream(5, n)
    for kind in ("few", "mixed", "large"):
        ids = sets(kind, 6, t, vocab)
        mask = ll.SamplingMask.from_lists(ids)
        truth, right = oracle(h, w, t, g, sets=ids)
        ours = ll.linear_token_stats(h, w, t, sampling_mask=mask)
        plain = ll.linear_token_stats(h, w, t, sampling_mask=mask, backend="torch")
        for name in ("logp", "entropy", "lse"):
            slack = float(np.abs(cases.to_numpy(getattr(plain, name)) - truth[name]).max())
            error = np.abs(cases.to_numpy(getattr(ours, name)) - truth[name]).max()
            assert error <= 2 * slack + 1e-5
        pairs = zip(gradients(ours, g, [h, w]), gradients(plain, g, [h, w]), right[:2], strict=True)
        for a, b, c in pairs:
            error, slack = (float(np.abs(cases.to_numpy(x) - c).max()) for x in (a, b))
            eps = torch.finfo(dtype).eps
            assert error <= 2 * slack + eps * float(np.abs(c).max())


def test_no_sets_are_no_mask() -> None:
    h, w = head(7, 20, 3000, torch.float32)
    t, g = cases.targets(7, 20, 3000), cases.upstream(7, 20)
    one = ll.linear_token_stats(h, w, t)
    other = ll.linear_token_stats(h, w, t, sampling_mask=mask_of("none", 0, t, 3000))
    for a, b in zip(one[:3], other[:3], strict=True):
        assert_bitwise_equal(a, b)
    for a, b in zip(gradients(one, g, [h, w]), gradients(other, g, [h, w]), strict=True):
        assert_bitwise_equal(a, b)


def test_the_target_alone_is_certain() -> None:
    h, w = head(8, 9, 300, torch.float32)
    t = cases.targets(8, 9, 300)
    stats = ll.linear_token_stats(h, w, t, sampling_mask=mask_of("target", 0, t, 300))
    assert (stats.logp == 0).all()
    assert (stats.entropy == 0).all()
    found = torch.autograd.grad(stats.logp.sum() + stats.entropy.sum(), [h, w])
    assert all((x == 0).all() for x in found)


def test_impossible_tokens_of_a_set() -> None:
    """A logit of -inf within a set has no part in it; a set of nothing else is a row error."""
    h, w = head(9, 3, 50, torch.float64)
    t, ids = torch.tensor([4, 5, 6]), [[4, 9, 7], [5, 9], [6]]
    bias = torch.zeros(50, dtype=torch.float64)
    bias[9] = -float("inf")
    without = [[i for i in row if i != 9] for row in ids]
    some, others = (
        ll.linear_token_stats(h, w, t, bias=bias, sampling_mask=ll.SamplingMask.from_lists(x))
        for x in (ids, without)
    )
    for a, b in zip(some[:3], others[:3], strict=True):
        assert_values(a, b.detach(), torch.float64)
    (d_weight,) = torch.autograd.grad(some.entropy.sum() + some.logp.sum(), w)
    assert d_weight.isfinite().all() and (d_weight[9] == 0).all()
    bias[6] = -float("inf")
    with pytest.raises(ValueError, match="linear_token_stats: row 2: it has no finite logit"):
        ll.linear_token_stats(h, w, t, bias=bias, sampling_mask=ll.SamplingMask.from_lists(ids))


def test_rows_that_are_not_finite_are_named() -> None:
    h, w = (x.detach() for x in head(9, 4, 50, torch.float32))
    t = torch.tensor([4, 5, 6, 7])
    h[2, 0] = float("nan")
    with pytest.raises(ValueError, match="row 2: its logits hold a NaN"):
        ll.linear_token_stats(h, w, t, sampling_mask=mask_of("few", 0, t, 50))
    masked = ll.linear_token_stats(
        h, w, t, mask=torch.arange(4) != 2, sampling_mask=mask_of("few", 0, t, 50)
    )
    assert masked.logp.isfinite().all() and masked.logp[2] == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 6), vocab=st.integers(1, 2500),
    heat=st.floats(0.2, 3), g_logp=st.floats(-3, 3), g_entropy=st.floats(-3, 3), data=st.data(),
)  # fmt: skip
def test_any_sets(
    seed: int, n: int, vocab: int, heat: float, g_logp: float, g_entropy: float, data: st.DataObject
) -> None:
    h, w = head(seed, n, vocab, torch.float64, hidden=5)
    t = torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, n))
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n))
    ids = [sets(kind, seed + i, t[i : i + 1], vocab)[0] for i, kind in enumerate(kinds)]
    g = [torch.full((n,), x, dtype=torch.float64) for x in (g_logp, g_entropy, 0.0)]
    stats = ll.linear_token_stats(
        h, w, t, temperature=heat, sampling_mask=ll.SamplingMask.from_lists(ids)
    )
    truth, right = oracle(h, w, t, g, sets=ids, temperature=heat)
    assert (stats.logp <= 0).all() and (stats.entropy >= 0).all()
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name) / 100, truth[name] / 100, torch.float64)
    for ours, expected in zip(gradients(stats, g, [h, w]), right, strict=False):
        assert_gradients(ours, expected, torch.float64, scale=1e4)


@pytest.mark.parametrize("kind", ["few", "large", "mixed"])
def test_how_it_is_split_is_not_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, instruction sets to rounding, the order of ids, batches, budgets."""
    h, w = head(10, 23, 4133, torch.bfloat16, hidden=130)
    t, g = cases.targets(10, 23, 4133), cases.upstream(10, 23)
    ids = sets(kind, 3, t, 4133)

    def run(ids: Any = ids, rows: Any = slice(None), **options: Any) -> Any:
        mask = ll.SamplingMask.from_lists(ids[rows] if isinstance(rows, slice) else ids)
        stats = ll.linear_token_stats(h[rows], w, t[rows], sampling_mask=mask, **options)
        return (*stats[:3], *gradients(stats, [x[rows] for x in g], [h, w]))

    machine(monkeypatch, gathered=1e18)
    exact = {"batch_invariant": True} if kind == "mixed" else {}
    whole = run(**exact)
    for a, b in zip(run([row[::-1] for row in ids], **exact), whole, strict=True):
        assert_bitwise_equal(a, b)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for a, b in zip(run(**exact), whole, strict=True):
            assert_bitwise_equal(a, b)
    finally:
        torch.set_num_threads(before)
    # Few ids go row by row, many by the vocabulary.
    for n in (1, 9):
        first = run(rows=slice(0, n), **exact)
        for a, b in zip(first[:3], whole[:3], strict=True):
            assert_bitwise_equal(a, b[:n])
        assert_bitwise_equal(first[3][:n], whole[3][:n])
    if kind != "mixed":
        for a, b in zip(run(memory_budget="64MiB"), whole, strict=True):
            assert_bitwise_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    import subprocess
    import sys

    code = """
import numpy as np, torch, logitless as ll
from logitless import reference
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    g = torch.Generator().manual_seed(1)
    h, w = (torch.randn(n, 71, generator=g).to(dtype).requires_grad_() for n in (9, 300))
    t = torch.arange(9)
    ids = [list(range(i, 300, 7 * i + 1)) for i in range(9)]
    mask = ll.SamplingMask.from_lists(ids)
    out = ll.linear_token_stats(h, w, t, sampling_mask=mask, batch_invariant=True)
    (out.logp + out.entropy).sum().backward()
    arrays = [x.detach().double().numpy() for x in (h, w)]
    truth = reference.linear_token_stats(*arrays, t.numpy(), sets=ids)
    np.testing.assert_allclose(out.logp.detach(), truth["logp"], atol=2e-5)
    np.testing.assert_allclose(out.entropy.detach(), truth["entropy"], atol=2e-5)
    up = {"g_logp": 1.0, "g_entropy": 1.0}
    right = reference.linear_token_stats_backward(*arrays, t.numpy(), sets=ids, **up)
    for x, d in zip((h, w), right):
        eps = torch.finfo(dtype).eps
        assert np.abs(x.grad.double().numpy() - d).max() <= (eps + 1e-6) * 4 * np.abs(d).max()
"""
    import os

    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "LOGITLESS_ISA": isa}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_frozen_parts_and_rows_without_a_gradient() -> None:
    h, w = head(11, 20, 3000, torch.float32)
    t, mask = cases.targets(11, 20, 3000), mask_of("few", 1, cases.targets(11, 20, 3000), 3000)
    full = ll.linear_token_stats(h, w, t, sampling_mask=mask)
    up = torch.where(torch.arange(20) % 3 == 0, 1.0, 0.0)
    both = torch.autograd.grad((full.logp * up).sum(), [h, w])
    assert (both[0][up == 0] == 0).all()
    for leaf, other, right in ((h, w, both[0]), (w, h, both[1])):
        given = [x if x is leaf else x.detach() for x in (h, w)]
        stats = ll.linear_token_stats(*given, t, sampling_mask=mask)
        (found,) = torch.autograd.grad((stats.logp * up).sum(), leaf)
        assert_bitwise_equal(found, right)
        assert other.grad is None
    with torch.no_grad():
        assert not ll.linear_token_stats(h, w, t, sampling_mask=mask).logp.requires_grad


def test_the_gradient_of_weight_as_rows() -> None:
    h, w = head(12, 20, 3000, torch.bfloat16)
    t = cases.targets(12, 20, 3000)
    mask, row_mask = mask_of("few", 1, t, 3000), cases.mask(12, 20)
    found = []
    for kind in ("dense", "rows"):
        stats = ll.linear_token_stats(h, w, t, mask=row_mask, sampling_mask=mask, weight_grad=kind)
        found.append(torch.autograd.grad(stats.logp.sum() + stats.entropy.sum(), [h, w]))
    (d_hidden, dense), (other, rows) = found
    assert_bitwise_equal(d_hidden, other)
    assert rows.is_sparse and rows.is_coalesced()
    assert_bitwise_equal(rows.to_dense(), dense)
    ids = {i for row, on in zip(mask.lists(), row_mask.tolist(), strict=True) if on for i in row}
    assert set(rows.indices()[0].tolist()) <= ids
    # An optimizer that takes it moves these rows alone.
    head_weight = torch.nn.Parameter(w.detach().float())
    stats = ll.linear_token_stats(
        h.detach().float(), head_weight, t, sampling_mask=mask, weight_grad="rows"
    )
    stats.logp.sum().backward()
    torch.optim.SGD([head_weight], lr=0.1).step()
    moved = (head_weight.detach() != w.detach().float()).any(1).nonzero().squeeze(1)
    assert set(moved.tolist()) <= {i for row in mask.lists() for i in row}


@pytest.mark.parametrize("kind", KINDS)
def test_numpy(kind: str) -> None:
    h, w = (x.detach() for x in head(13, 12, 700, torch.float32))
    t, mask = cases.targets(13, 12, 700), cases.mask(13, 12)
    options = {**cases.chain("all", 13, 12, 700), "mask": mask}
    sampling_mask = mask_of(kind, 2, t, 700)
    extras = (*FULL, *EXTRAS, "dropped_mass")
    arrays = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    ours = ll.linear_token_stats(
        h.numpy(), w.numpy(), t.numpy(), sampling_mask=sampling_mask, extras=extras, **arrays
    )
    right = ll.linear_token_stats(h, w, t, sampling_mask=sampling_mask, extras=extras, **options)
    rows = ll.token_stats(
        (h @ w.t()).numpy(), t.numpy(), sampling_mask=sampling_mask, extras=extras[:-1], **arrays
    )
    for found in (ours, rows):
        for name in ("logp", "entropy", "lse"):
            np.testing.assert_allclose(getattr(found, name), getattr(right, name), atol=2e-5)
        for name, value in found.extras.items():
            np.testing.assert_allclose(value, right.extras[name], atol=2e-5, err_msg=name)
    assert tuple(ours.extras) == extras


@pytest.mark.parametrize("name", SPECS)
def test_the_loss(name: str) -> None:
    """Of every spec the statistics and the loss of them in one."""
    spec, data = spec_of(name), batch()
    mask = mask_of("mixed", 1, data["targets"], V)
    head_inputs = [data[k] for k in ("hidden", "weight", "targets")]
    scored = ll.linear_token_stats(*head_inputs, sampling_mask=mask, temperature=0.9)
    data["old_logp"] = scored.logp + 0.3 * torch.randn(B, T, generator=torch.manual_seed(1))
    options = inputs_of(spec, data)
    leaves = [data[k].requires_grad_() for k in ("hidden", "weight")]
    out = ll.linear_policy_loss(**data, spec=spec, sampling_mask=mask, temperature=0.9, **options)
    found = torch.autograd.grad(out.loss, leaves)
    plain = ll.linear_token_stats(
        *leaves, data["targets"], sampling_mask=mask, temperature=0.9, backend="torch"
    )
    expected = ll.policy_loss(
        plain.logp, data["old_logp"], data["advantages"], data["mask"], spec,
        entropy=plain.entropy, **options,
    )  # fmt: skip
    right = torch.autograd.grad(expected.loss, leaves)
    n = data["mask"].sum() if spec.aggregation == "token-sum" else 1
    assert_values(out.loss.view(1) / n, expected.loss.detach().view(1) / n, torch.float32)
    for ours, truth in zip(found, right, strict=True):
        assert_gradients(ours, truth, torch.float32, scale=5 * max(1.0, float(n)))
    assert out.metrics.keys() == expected.metrics.keys()
    assert not out.logp.requires_grad
    assert out.logp.shape == (B, T)


def test_a_tiny_loss_in_float16() -> None:
    """Coefficients of 1 / tokens stay in range, by dense products too."""
    data = batch()
    spec = dataclasses.replace(ll.presets["ppo"])
    found = []
    for rate in (1e18, 1e-9):
        with pytest.MonkeyPatch.context() as patch:
            machine(patch, gathered=rate)
            leaves = [data[k].half().requires_grad_() for k in ("hidden", "weight")]
            rest = {k: data[k] for k in ("targets", "old_logp", "advantages", "mask")}
            mask = mask_of("few", 1, data["targets"], V)
            totals = ll.Totals(10**6, 10**4)
            out = ll.linear_policy_loss(
                *leaves, *rest.values(), spec, sampling_mask=mask, totals=totals
            )
            found.append(torch.autograd.grad(out.loss * 1e4, leaves))
    for a, b in zip(*found, strict=True):
        assert a.abs().max() > 0
        assert (a - b).abs().max() <= 2e-2 * a.abs().max()


def test_check() -> None:
    h, w = (x.detach() for x in head(14, 40, 3000, torch.bfloat16))
    t, row_mask = cases.targets(14, 40, 3000), cases.mask(14, 40)
    given = {"hidden": h, "targets": t, "mask": row_mask}
    result = ll.check(w, given, sampling_mask=mask_of("mixed", 1, t, 3000), temperature=0.8)
    assert result.ok
    with pytest.raises(ValueError, match="check: sampling_mask must have a row for each"):
        ll.check(w, given, sampling_mask=mask_of("mixed", 1, t[:9], 3000))


def test_calls_of_no_token_and_of_any_layout() -> None:
    h, w = head(15, 6, 300, torch.float32)
    t = cases.targets(15, 6, 300).int()
    mask, nothing = mask_of("few", 1, t, 300), torch.zeros(6, dtype=torch.bool)
    none = ll.SamplingMask.from_lists([])
    empty = ll.linear_token_stats(h[:0], w, t[:0], sampling_mask=none, extras=("kept_mass",))
    assert empty.logp.shape == empty.extras["kept_mass"].shape == (0,)
    for kind in ("dense", "rows"):
        stats = ll.linear_token_stats(
            h, w, t, mask=nothing, sampling_mask=mask, weight_grad=kind, extras=("argmax",)
        )
        assert (stats.logp == 0).all() and (stats.extras["argmax"] == -1).all()
        d_hidden, d_weight = torch.autograd.grad(stats.logp.sum(), [h, w])
        assert (d_hidden == 0).all() and d_weight.shape == w.shape
        assert (d_weight.to_dense() == 0).all()
    right = ll.linear_token_stats(h, w, t, sampling_mask=mask)
    turned = [x.detach().t().contiguous().t().requires_grad_() for x in (h, w)]
    ours = ll.linear_token_stats(*turned, t, sampling_mask=mask)
    assert_bitwise_equal(ours.logp, right.logp)
    pairs = (torch.autograd.grad(x.logp.sum(), y) for x, y in ((ours, turned), (right, [h, w])))
    for a, b in zip(*pairs, strict=True):
        assert_bitwise_equal(a, b)


def test_any_number_of_backwards_and_no_second_derivative() -> None:
    h, w = head(16, 6, 300, torch.float32)
    t = cases.targets(16, 6, 300)
    stats = ll.linear_token_stats(h, w, t, sampling_mask=mask_of("few", 1, t, 300))
    loss = stats.logp.sum() + stats.entropy.sum()
    one, other = (torch.autograd.grad(loss, [h, w], retain_graph=True) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert_bitwise_equal(a, b)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, [h, w], create_graph=True)


def test_ops_are_registered_as_torch_wants_them() -> None:
    h, w = head(17, 4, 300, torch.float32)
    t = cases.targets(17, 4, 300)
    rows = RowArguments(t, None, None, None, 1.0, 1.0, 0.0, "cpu")
    masked = MaskedRows.of(mask_of("few", 1, t, 300), rows, Shard(), 300)
    tiling = Tiling(4, 300, 0, torch.float32, 0, "", torch.float32)
    for dense in (False, True):
        how = SetProducts("cpu", dense, False)
        check_op(set_logits, h, w, masked.sets, how, tiling, Shard(), None)
    values = torch.randn(len(masked.sets.columns), requires_grad=True)
    check_op(set_stats, values, masked.sets, rows, True, 300, Shard())
