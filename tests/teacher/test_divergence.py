"""A student's divergence from a teacher: values, gradients, and what no tiling may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import _core, reference  # noqa: E402
from tests.support.teacher_cases import (  # noqa: E402
    CHAINS,
    EXTRAS,
    INF,
    KINDS,
    Call,
    N,
    V,
    beta_of,
)  # fmt: skip
from tests.support.tolerances import (  # noqa: E402
    assert_bitwise_equal,
    assert_gradients,
    assert_values,
)


def check_values(out: ll.Divergence, truth: dict[str, Any], dtype: Any, plain: Any = None) -> None:
    named = {**out._asdict(), **out.extras}
    del named["extras"]
    for name, value in named.items():
        other = None if plain is None else {**plain._asdict(), **plain.extras}[name]
        assert_values(value, truth[name], dtype, plain=other)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_two_heads_are_the_oracle(dtype: Any, kind: str, chain: str) -> None:
    call = Call(dtype, kind, chain)
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    options = call.options
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
    narrow = dtype.itemsize == 2
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, **options,
        logits_dtype=torch.float32 if narrow else None,
    )  # fmt: skip
    call.loss(out).backward()
    logits = call.hidden.float() @ call.weight.float().T
    others = call.teacher_hidden.float() @ call.teacher_weight.float().T
    plain = ll.divergence(
        logits, others, call.mask, extras=EXTRAS, backend="torch", **call.options
    ) if dtype != torch.float64 else None  # fmt: skip
    check_values(out, call.oracle(reference.linear_divergence, *call.heads), dtype, plain)
    truth = call.oracle(reference.linear_divergence_backward, *call.heads, **call.upstream())
    of_bias = options["bias"].grad if "bias" in options else None
    for x, y in zip((hidden.grad, weight.grad, of_bias), truth, strict=True):
        if x is not None:
            assert_gradients(x, y, dtype, scale=10 * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_given_logits_are_the_oracle(dtype: Any, kind: str, chain: str, backend: str) -> None:
    call = Call(dtype, kind, chain)
    logits = (call.hidden @ call.weight.T).requires_grad_()
    others = call.teacher_hidden @ call.teacher_weight.T
    out = ll.divergence(logits, others, call.mask, extras=EXTRAS, backend=backend, **call.options)
    call.loss(out).backward()
    plain = None
    if dtype != torch.float64:
        plain = ll.divergence(
            logits.detach(), others, call.mask, extras=EXTRAS, backend="torch", **call.options
        )
    check_values(out, call.oracle(reference.divergence, logits, others), dtype, plain)
    truth, _ = call.oracle(reference.divergence_backward, logits, others, **call.upstream())
    assert logits.grad is not None
    assert_gradients(logits.grad, truth, dtype, scale=4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracles_gradients_are_finite_differences(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 3, 11)) * 2
    chain = {"softcap": 3.0, "logit_scale": 1.2, "bias": rng.normal(size=11), "temperature": 0.7}
    options = {"kind": kind, "beta": beta_of(kind), "student": chain}
    gd, ge = rng.normal(size=(2, 3))

    def value(x: Any) -> float:
        out = reference.divergence(x, others, **options)
        return float(np.sum(gd * out["divergence"] + ge * out["entropy"]))

    ours, bias = reference.divergence_backward(
        logits, others, g_divergence=gd, g_entropy=ge, **options
    )
    step, found = 1e-6, np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        near = logits.copy()
        near[place] += step
        far = logits.copy()
        far[place] -= step
        found[place] = (value(near) - value(far)) / (2 * step)
    np.testing.assert_allclose(ours, found, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias, ours.sum(0), rtol=1e-12)
    # a shift of all logits moves nothing: without the chain a row's gradient sums to 0
    plain, _ = reference.divergence_backward(
        logits, others, kind=kind, beta=beta_of(kind), g_divergence=gd, g_entropy=ge
    )
    np.testing.assert_allclose(plain.sum(1), 0, atol=1e-12)


def outcome(call: Call, **changed: Any) -> list[Any]:
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, **call.options, **changed
    )
    call.loss(out).backward()
    found = [*out[:3], *out.extras.values(), hidden.grad, weight.grad]
    return [x.detach() for x in found if x is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["1MiB", "600KiB", "16MiB"])
def test_a_budget_changes_values_by_rounding_alone(kind: str, budget: str) -> None:
    """Kept, made again, and a mix of both; of float64, so that a wrong tile is seen."""
    call = Call(torch.float64, kind, "both")
    for a, b in zip(outcome(call), outcome(call, memory_budget=budget), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_budget_too_small_names_what_is_enough() -> None:
    call = Call(torch.float32, "jsd")
    with pytest.raises(ValueError, match=r"memory_budget must be at least (\d+) bytes") as caught:
        outcome(call, memory_budget=100)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    outcome(call, memory_budget=least + 1)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        outcome(call, memory_budget=least - 2)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind: str) -> None:
    call, before = Call(torch.float32, kind, "both"), torch.get_num_threads()
    logits, others = (call.hidden @ call.weight.T), (call.teacher_hidden @ call.teacher_weight.T)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            out = ll.divergence(leaf, others, call.mask, extras=EXTRAS, **call.options)
            call.loss(out).backward()
            found.append([*out[:3], *out.extras.values(), leaf.grad])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_bitwise_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_tile_are_those_of_a_call(kind: str) -> None:
    """[B, T, V] with strides of its own, and each row by itself."""
    logits, others = torch.randn(2, 3, 4, 300, generator=torch.Generator().manual_seed(1))
    options = {"kind": kind, "beta": beta_of(kind)}
    whole = ll.divergence(logits, others, **options)
    wide = torch.randn(3, 6, 300)
    wide[:, ::2][:, :3] = logits[:, :3]
    strided = ll.divergence(wide[:, ::2], others[:, :3], **options)
    assert_bitwise_equal(whole.divergence[:, :3], strided.divergence)
    alone = ll.divergence(logits[1, 2:3], others[1, 2:3], **options)
    assert_bitwise_equal(whole.divergence[1, 2:3], alone.divergence)


def test_masked_rows_are_not_read_and_give_zeros() -> None:
    for kind in KINDS:
        call = Call(torch.float32, kind)
        want = outcome(call)
        for x in (call.hidden, call.teacher_hidden):
            x[~call.mask] = float("nan")
        found = outcome(call)
        for a, b in zip(want, found, strict=True):
            assert_bitwise_equal(a, b)
        assert not found[0][~call.mask].any() and not found[5][~call.mask].any()


def test_frozen_parts_get_no_gradient_and_change_no_other() -> None:
    call = Call(torch.float32, "reverse_kl")
    of_hidden, of_weight = outcome(call)[5:]
    for frozen in ("hidden", "weight"):
        leaves = [x.clone().requires_grad_(name != frozen) for name, x in
                  zip(("hidden", "weight"), call.heads[:2], strict=True)]  # fmt: skip
        teacher = [x.clone().requires_grad_() for x in call.heads[2:]]
        out = ll.linear_divergence(*leaves, *teacher, call.mask, **call.options)
        call.loss(out).backward()
        assert all(x.grad is None for x in teacher)
        for leaf, right in zip(leaves, (of_hidden, of_weight), strict=True):
            if leaf.grad is not None:
                torch.testing.assert_close(leaf.grad, right, rtol=1e-5, atol=1e-6)
        assert [x.grad is None for x in leaves] == [frozen == "hidden", frozen == "weight"]


def test_tokens_without_mass() -> None:
    """Of both: as if it were not there. Of one: what the formula says."""
    p = torch.tensor([[0.3, 1.0, -INF, 0.5]], requires_grad=True)
    q = torch.tensor([[0.1, 0.2, -INF, -INF]])
    values = {}
    for kind in KINDS:
        out = ll.divergence(p, q, kind=kind, beta=beta_of(kind), extras=EXTRAS)
        values[kind] = out.divergence
        (gradient,) = torch.autograd.grad(out.divergence.sum(), p)
        assert gradient[0, 2] == 0
        assert gradient.isfinite().all() == (kind != "reverse_kl")
    assert values["reverse_kl"] == INF
    p3, q3 = p.detach()[:, [0, 1, 3]].numpy(), q[:, [0, 1, 3]].numpy()
    for kind in ("forward_kl", "jsd"):
        truth = reference.divergence(p3, q3, kind=kind, beta=beta_of(kind))
        assert_values(values[kind], truth["divergence"], torch.float32)
    swapped = ll.divergence(q, p.detach(), kind="forward_kl")
    assert swapped.divergence == INF
    # a mix has mass wherever either has
    for backend in ("auto", "torch"):
        student = q.clone().requires_grad_()
        out = ll.divergence(student, p.detach(), kind="jsd", beta=0.3, backend=backend)
        truth = reference.divergence(q3, p3, kind="jsd", beta=0.3)
        assert_values(out.divergence, truth["divergence"], torch.float32)
        (gradient,) = torch.autograd.grad(out.divergence.sum(), student)
        expected, _ = reference.divergence_backward(
            q3.astype(np.float64), p3.astype(np.float64), g_divergence=np.ones(1), kind="jsd",
            beta=0.3,
        )  # fmt: skip
        assert_gradients(gradient[:, [0, 1, 3]], expected, torch.float32)
        assert gradient[0, 2] == 0
    # a row whose divergence gets no gradient is none the worse for it
    other = ll.divergence(p, q, kind="reverse_kl")
    (gradient,) = torch.autograd.grad(other.entropy.sum(), p)
    assert gradient.isfinite().all()


def test_padding_with_a_bias_of_minus_infinity_is_no_padding() -> None:
    call = Call(torch.float64, "jsd")
    want = outcome(call)
    bias = torch.zeros(V + 3, dtype=torch.float64)
    bias[V:] = -INF
    for name in ("weight", "teacher_weight"):
        x = getattr(call, name)
        setattr(call, name, torch.cat([x, torch.randn(3, x.shape[1], dtype=x.dtype)]))
    call.student, call.teacher = {"bias": bias}, {"bias": bias}
    *values, of_hidden, of_weight = outcome(call)
    for a, b in zip(want, [*values, of_hidden, of_weight[:V]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert not of_weight[V:].any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_properties(data: st.DataObject) -> None:
    """Never negative; 0 of equals; JSD at most the entropy of beta; shifts and orders of tokens
    change nothing but rounding; large logits lose nothing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vocab = data.draw(st.sampled_from([1, 2, 63, 64, 65, 2047, 2049, 4500]))
    spread = data.draw(st.sampled_from([0.0, 1.0, 20.0, 200.0]))
    kind, beta = data.draw(st.sampled_from(KINDS)), data.draw(st.floats(0.01, 0.99))
    options: dict[str, Any] = {"kind": kind, "beta": beta if kind == "jsd" else 0.5}
    logits, others = rng.normal(size=(2, 3, vocab)) * spread
    out = ll.divergence(logits, others, **options)
    truth = reference.divergence(logits, others, **options)["divergence"]
    np.testing.assert_allclose(out.divergence, truth, rtol=1e-10, atol=1e-12)
    assert (out.divergence >= 0).all()
    if kind == "jsd":
        assert (out.divergence <= -beta * np.log(beta) - (1 - beta) * np.log1p(-beta) + 1e-12).all()
    assert (ll.divergence(logits, logits.copy(), **options).divergence < 1e-12).all()
    narrow = ll.divergence(logits.astype(np.float32), others.astype(np.float32), **options)
    assert (narrow.divergence >= 0).all()
    order = rng.permutation(vocab)
    moved = ll.divergence(logits[:, order] + 3, others[:, order] - 1, **options)
    np.testing.assert_allclose(moved.divergence, truth, rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_merged_states_are_those_of_the_whole(data: st.DataObject) -> None:
    """Any cuts at a block, with parts in which one of the two, or both, have nothing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    block, n, parts = _core.rows.BLOCK, 3, data.draw(st.integers(1, 4))
    logits, others = rng.normal(size=(2, n, parts * block)) * data.draw(st.sampled_from([1, 90]))
    for part in range(parts):
        columns = slice(part * block, (part + 1) * block)
        logits[part % n, columns] = -np.inf
        if data.draw(st.booleans()):
            others[part % n, columns] = -np.inf
    logits[:, 7] = others[:, 7] = 0.5
    scale = rng.random(n) + 0.5
    own, teacher = _core.rows.Rows(n, row_scale=scale), _core.rows.Rows(n, scale=0.7)
    whole, merged = np.empty((2, n, 8))
    _core.divergence.forward(own, teacher, logits, others, whole)
    pieces = np.empty((parts, n, 8))
    for part in range(parts):
        tiles = (x[:, part * block : (part + 1) * block] for x in (logits, others))
        _core.divergence.forward(own, teacher, *tiles, pieces[part], start=part * block)
    _core.divergence.merge(own, teacher, pieces, merged)
    np.testing.assert_allclose(merged, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_is_torch(kind: str) -> None:
    call = Call(torch.float32, kind, "both")
    options = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in call.options.items()}
    arrays = [x.numpy() for x in call.heads]
    out = ll.linear_divergence(*arrays, call.mask.numpy(), extras=EXTRAS, **options)
    want = ll.linear_divergence(*call.heads, call.mask, extras=EXTRAS, **call.options)
    for a, b in zip([*out[:3], *out.extras.values()], [*want[:3], *want.extras.values()],
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b.numpy(), rtol=2e-6, atol=4e-6)


BAD = {
    "row 3: its logits hold a NaN": ("hidden", float("nan")),
    "row 3: its teacher's logits hold a NaN": ("teacher_hidden", float("nan")),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_named(message: str, backend: str) -> None:
    name, value = BAD[message]
    call = Call(torch.float32, "jsd")
    getattr(call, name)[3] = value
    with pytest.raises(ValueError, match=message):
        ll.linear_divergence(*call.heads, call.mask, backend=backend, **call.options)
    logits, others = torch.zeros(2, 5), torch.zeros(2, 5)
    others[1] = -INF
    with pytest.raises(ValueError, match="row 1: its teacher has no finite logit"):
        ll.divergence(logits, others, backend=backend)
    logits[0, 2] = INF
    with pytest.raises(ValueError, match=r"row 0: its logits hold a \+inf"):
        ll.divergence(logits, others, backend=backend)


def test_what_does_not_fit_is_refused_by_name() -> None:
    call = Call(torch.float32, "reverse_kl")
    h, w, th, tw = call.heads
    refusals: dict[str, Any] = {
        r"teacher_weight must have the rows of weight, V = 5000, got 4000": (h, w, th, tw[:4000]),
        r"teacher_hidden must be \[..., H\] and teacher_weight \[V, H\]": (h, w, th, tw[:, :3]),
        r"teacher_hidden must be .* = \[9, 7\], got \[8, 7\]": (h, w, th[:8], tw),
        r"teacher_hidden must be float64 where hidden is": (h, w, th.double(), tw.double()),
    }
    for message, arrays in refusals.items():
        with pytest.raises((ValueError, TypeError), match=message):
            ll.linear_divergence(*arrays)
    options: dict[str, Any] = {
        "teacher_softcap must be": {"teacher_softcap": -1.0},
        "teacher_logit_scale must be": {"teacher_logit_scale": 0.0},
        "teacher_temperature must be": {"teacher_temperature": torch.zeros(N)},
        "beta must be left at 0.5 with kind='reverse_kl'": {"beta": 0.3},
        "beta must be above 0 and below 1": {"beta": 1.0, "kind": "jsd"},
        "kind must be one of": {"kind": "kl"},
    }
    for message, changed in options.items():
        with pytest.raises((ValueError, TypeError), match=message):
            ll.linear_divergence(h, w, th, tw, **changed)


def test_a_second_backward_and_a_second_derivative_are_refused() -> None:
    call = Call(torch.float32, "reverse_kl")
    hidden = call.hidden.clone().requires_grad_()
    out = ll.linear_divergence(hidden, *call.heads[1:])
    out.divergence.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="linear_divergence: backward through the same forward"):
        out.divergence.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_torch_compile_is_the_same(kind: str) -> None:
    call = Call(torch.float32, kind)
    leaves = [x.clone().requires_grad_() for x in call.heads[:2]]

    def loss(hidden: Any, weight: Any) -> Any:
        out = ll.linear_divergence(hidden, weight, *call.heads[2:], call.mask, **call.options)
        return call.loss(out)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(*leaves).backward()
    for leaf, right in zip(leaves, outcome(call)[5:], strict=True):
        assert leaf.grad is not None
        assert_bitwise_equal(leaf.grad, right)


def test_autocast_casts_both_heads() -> None:
    call = Call(torch.float32, "forward_kl")
    hidden = call.hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ll.linear_divergence(hidden, *call.heads[1:])
    narrow = [x.bfloat16() for x in call.heads]
    assert_bitwise_equal(out.divergence, ll.linear_divergence(*narrow).divergence)
    out.divergence.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
