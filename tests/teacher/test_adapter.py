"""An adapter on the student's head: the divergence of the merged weight, gradients of A and B."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import reference
from tests.support import mask_cases
from tests.support.plans import machine
from tests.support.teacher_cases import ANYONE, EXTRAS, KINDS, Call, H, V, beta_of, double, named
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

SCALES = (0.7, -1.5)


def adapters(dtype: Any = torch.float32) -> list[tuple[Any, Any, float]]:
    g = torch.Generator().manual_seed(5)
    shapes = [((rank, H), (V, rank)) for rank in (3, 1)]
    factors = [[torch.randn(*shape, generator=g) / 4 for shape in both] for both in shapes]
    return [
        (A.to(dtype).requires_grad_(), B.to(dtype).requires_grad_(), scale)
        for (A, B), scale in zip(factors, SCALES, strict=True)
    ]


def factors_of(given: Any) -> list[Any]:
    return [x for A, B, _ in given for x in (A, B)]


def plain(given: Any) -> list[Any]:
    return [(double(A), double(B), scale) for A, B, scale in given]


def merged(call: Call, given: Any) -> torch.Tensor:
    return torch.from_numpy(reference.merged_weight(double(call.weight), plain(given)))


def outcome(call: Call, given: Any, **options: Any) -> tuple[ll.Divergence, list[Any]]:
    """The results, and the gradients of hidden, weight, a bias, and each A and B."""
    given_options = {**call.options, "extras": EXTRAS, **options}
    leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
    out = ll.linear_divergence(*leaves, *call.heads[2:], call.mask, adapter=given, **given_options)
    return out, list(torch.autograd.grad(call.loss(out), leaves + factors_of(given)))


def least_budget(call: Call, given: Any, **options: Any) -> int:
    """With which no logits are kept."""
    with pytest.raises(ValueError, match="memory_budget must be at least") as caught:
        outcome(call, given, memory_budget=1, **options)
    return int(str(caught.value).split("at least ")[1].split()[0]) + 1


def truth_of(call: Call, given: Any, **more: Any) -> tuple[dict[str, Any], list[Any]]:
    h, _, *teacher = call.heads
    heads = (h, merged(call, given), *teacher)
    values = call.oracle(reference.linear_divergence, *heads, **more)
    d_hidden, d_merged, _ = call.oracle(
        reference.linear_divergence_backward, *heads, **call.upstream(), **more
    )
    found = [d_hidden, d_merged]
    for one in plain(given):
        found += reference.adapter_backward(d_merged, one)
    return values, found


@pytest.mark.parametrize("way", ["keep", "recompute"])
@pytest.mark.parametrize("chain", ["plain", "student", "both"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_merged_weight(dtype: Any, kind: str, chain: str, way: str) -> None:
    call, given = Call(dtype, kind, chain), adapters()
    values, right = truth_of(call, given)
    # what is masked may be anything
    call.hidden[~call.mask] = float("nan")
    more = {"logits_dtype": torch.float32 if dtype.itemsize == 2 else None}
    budget = None if way == "keep" else least_budget(call, given, **more)
    out, gradients = outcome(call, given, memory_budget=budget, **more)
    rounded = None
    if dtype != torch.float64:
        rounded = named(
            ll.linear_divergence(
                *call.heads, call.mask, adapter=given, extras=EXTRAS, backend="torch",
                **call.options, **more,
            )
        )  # fmt: skip
    for name, value in named(out).items():
        assert_values(
            value, values[name], dtype, plain=None if rounded is None else rounded[name].detach()
        )
    slack = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 3e-5}.get(dtype, 1e-7)
    leaves = [*call.heads[:2], *factors_of(given)]
    for ours, x, leaf in zip(gradients, right, leaves, strict=True):
        assert ours.dtype == leaf.dtype
        assert np.abs(double(ours) - x).max() <= slack * np.abs(x).max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_finite_differences(kind: str) -> None:
    """The oracle's own formula, along random directions."""
    rng = np.random.default_rng(0)
    h, w, th, tw = (rng.normal(size=s) for s in ((4, 5), (7, 5), (4, 3), (7, 3)))
    A, B = rng.normal(size=(2, 5)), rng.normal(size=(7, 2))
    options = {"kind": kind, "beta": beta_of(kind)}

    def value(A: Any, B: Any) -> float:
        weight = reference.merged_weight(w, [(A, B, 0.3)])
        out = reference.linear_divergence(h, weight, th, tw, **options)
        return float((out["divergence"] + 0.5 * out["entropy"]).sum())

    weight = reference.merged_weight(w, [(A, B, 0.3)])
    _, d_merged, _ = reference.linear_divergence_backward(
        h, weight, th, tw, g_divergence=1.0, g_entropy=0.5, **options
    )
    d_a, d_b = reference.adapter_backward(d_merged, (A, B, 0.3))
    for way, d in ((rng.normal(size=A.shape), d_a), (rng.normal(size=B.shape), d_b)):
        e = 1e-5
        up, down = (value(A + x, B) if d is d_a else value(A, B + x) for x in (e * way, -e * way))
        assert abs((up - down) / (2 * e) - (way * d).sum()) < 1e-7


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 12), vocab=st.integers(1, 2500), rank=st.integers(1, 9),
    kind=st.sampled_from(KINDS), tile=st.integers(1, 8), seed=st.integers(0, 99),
    columns=st.sampled_from([1, 1 << 14, 1 << 20]),
)  # fmt: skip
def test_any_shape_and_tiling(
    n: int, vocab: int, rank: int, kind: str, tile: int, seed: int, columns: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    h, w, A, B, th, tw = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((n, 7), (vocab, 7), (rank, 7), (vocab, rank), (n, 4), (vocab, 4))
    )
    leaves = [x.requires_grad_() for x in (h, w, A, B)]
    up = torch.randn(2, n, generator=g, dtype=torch.float64)
    options: dict[str, Any] = {"kind": kind, "beta": beta_of(kind)}

    def loss(out: ll.Divergence) -> Any:
        return (out.divergence * up[0] + out.entropy * up[1]).sum()

    with pytest.MonkeyPatch.context() as patch:
        machine(patch, tile_rows=tile, tile_bytes=columns)
        ours = ll.linear_divergence(h, w, th, tw, adapter=(A, B, 0.5), **options)
        found = torch.autograd.grad(loss(ours), leaves)
    right = ll.linear_divergence(h, w + 0.5 * B @ A, th, tw, **options)
    for a, b in zip(ours[:3], right[:3], strict=True):
        assert_values(a, b.detach(), torch.float64)
    for a, b in zip(found, torch.autograd.grad(loss(right), leaves), strict=True):
        assert_gradients(a, b, torch.float64, scale=1e3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_weight_gets_no_product(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Nothing of [V, H] is made, and the gradients are those beside a trained weight."""
    from logitless.ops.head import backward

    call, given = Call(torch.float32, kind), adapters()
    _, right = outcome(call, given)
    made, own = [], backward.weight_gradient

    def counted(like: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(tuple(like.shape))
        return own(like, *rest)

    monkeypatch.setattr(backward, "weight_gradient", counted)
    out = ll.linear_divergence(*call.heads, call.mask, adapter=given, **call.options)
    found = torch.autograd.grad(call.loss(out), factors_of(given))
    assert made == [(V, 4)]
    for a, b in zip(found, right[2:], strict=True):
        assert_bitwise_equal(a, b)
    with torch.no_grad():
        none = ll.linear_divergence(*call.heads, call.mask, adapter=given, **call.options)
    assert not none.divergence.requires_grad
    assert_bitwise_equal(none.divergence, out.divergence)


@pytest.mark.parametrize("way", ["gathered", "dense", "rows", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_a_sampling_mask(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gathered=1e-9 if way == "dense" else 1e18)
    call, given = Call(torch.float64, kind, "both"), adapters(torch.float64)
    for which in ("few", "mixed", "borders", "large"):
        if way == "rows" and which == "mixed":
            continue
        ids = mask_cases.sets(which, 3, ANYONE, V)
        values, right = truth_of(call, given, sets=ids)
        out, gradients = outcome(
            call, given, sampling_mask=ll.SamplingMask.from_lists(ids),
            weight_grad="rows" if way == "rows" else "dense",
            backend="torch" if way == "torch" else "auto",
        )  # fmt: skip
        for name, value in named(out).items():
            np.testing.assert_allclose(
                value.detach(), values[name], rtol=1e-9, atol=1e-11, err_msg=f"{which} {name}"
            )
        assert gradients[1].is_sparse == (way == "rows")
        for x, y in zip(gradients, right, strict=True):
            whole = x.to_dense() if x.is_sparse else x
            scale = 10 * max(1.0, float(np.abs(y).max()))
            assert_gradients(whole, y, torch.float64, scale=scale)


def test_numpy_is_torch() -> None:
    call, given = Call(torch.float32, "jsd", "both"), adapters()
    arrays = [x.numpy() for x in call.heads]
    known = [(A.detach().numpy(), B.detach().numpy(), scale) for A, B, scale in given]
    options = {k: v.numpy() if torch.is_tensor(v) else v for k, v in call.options.items()}
    sets = ll.SamplingMask.from_lists(mask_cases.sets("mixed", 3, ANYONE, V))
    for more in ({}, {"sampling_mask": sets}):
        ours = ll.linear_divergence(
            *arrays, call.mask.numpy(), adapter=known, extras=EXTRAS, **options, **more
        )
        want = ll.linear_divergence(
            *call.heads, call.mask, adapter=given, extras=EXTRAS, **call.options, **more
        )
        for name, value in named(ours).items():
            right = named(want)[name].detach().numpy()
            np.testing.assert_allclose(value, right, rtol=4e-6, atol=8e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_torch_compile_is_the_same(kind: str) -> None:
    call, given = Call(torch.float32, kind), adapters()
    leaves = [*(x.clone().requires_grad_() for x in call.heads[:2]), *factors_of(given)]

    def loss(hidden: Any, weight: Any, *x: Any) -> Any:
        both = [(*x[:2], SCALES[0]), (*x[2:], SCALES[1])]
        out = ll.linear_divergence(
            hidden, weight, *call.heads[2:], call.mask, adapter=both, **call.options
        )
        return call.loss(out)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for a, b in zip(found, outcome(call, given)[1], strict=True):
        assert_gradients(a, b, torch.float32, scale=5)


def test_under_autocast() -> None:
    call, given = Call(torch.float32, "forward_kl"), adapters()
    with torch.autocast("cpu", torch.bfloat16):
        ours = ll.linear_divergence(*call.heads, adapter=given)
    found = torch.autograd.grad(ours.divergence.sum(), factors_of(given))
    right = ll.linear_divergence(*(x.bfloat16() for x in call.heads), adapter=given)
    truth = torch.autograd.grad(right.divergence.sum(), factors_of(given))
    for a, b in zip(found, truth, strict=True):
        assert a.dtype == torch.float32
        assert_bitwise_equal(a, b)


def test_what_does_not_fit_is_refused_by_name() -> None:
    call, (A, B, scale) = Call(torch.float32, "reverse_kl"), adapters()[0]
    refusals: dict[str, Any] = {
        r"adapter's A must be \[r, H\] = \[r, 12\], got \[3, 11\]": (A[:, 1:], B, scale),
        r"adapter's B must be \[V, r\] = \[5000, 3\], got \[4999, 3\]": (A, B[1:], scale),
        r"adapter must be a tuple \(A, B, scale\), got a tuple of 2": (A, B),
        r"adapter's scale must be": (A, B, float("nan")),
    }
    for message, adapter in refusals.items():
        with pytest.raises((ValueError, TypeError), match=f"{message}"):
            ll.linear_divergence(*call.heads, adapter=adapter)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        ll.linear_divergence(*call.heads, adapter=(A, B, scale), memory_budget=10)
