"""Divergences of rows whose softmaxes are both renormalised over sets of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import reference  # noqa: E402
from logitless.ops.rows.arguments import Transform  # noqa: E402
from logitless.ops.rows.sets import RowSets  # noqa: E402
from logitless.ops.sharding.shard import Shard  # noqa: E402
from logitless.ops.teacher.chain import TeacherChain  # noqa: E402
from logitless.ops.teacher.pairs import Measure  # noqa: E402
from logitless.ops.teacher.sets_op import set_pairs  # noqa: E402
from tests.support import mask_cases  # noqa: E402
from tests.support.opcheck import check_op  # noqa: E402
from tests.support.plans import machine  # noqa: E402
from tests.support.teacher_cases import (  # noqa: E402
    ANYONE,
    CHAINS,
    EXTRAS,
    INF,
    KINDS,
    Call,
    V,
    beta_of,
    named,
)
from tests.support.tolerances import (  # noqa: E402
    assert_bitwise_equal,
    assert_gradients,
    assert_values,
)

SETS = [kind for kind in mask_cases.KINDS if kind != "target"]


def sets_of(kind: str) -> list[list[int]]:
    return mask_cases.sets(kind, 3, ANYONE, V)


@pytest.mark.parametrize("way", ["gathered", "dense", "torch"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_heads_are_the_oracle(
    kind: str, chain: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gathered=1e-9 if way == "dense" else 1e18)
    call = Call(torch.float64, kind, chain)
    for which in SETS:
        ids, options = sets_of(which), call.options
        hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
        leaves = [hidden, weight]
        if "bias" in options:
            options["bias"] = options["bias"].clone().requires_grad_()
            leaves.append(options["bias"])
        out = ll.linear_divergence(
            hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, **options,
            sampling_mask=ll.SamplingMask.from_lists(ids),
            backend="torch" if way == "torch" else "auto",
        )  # fmt: skip
        truth = call.oracle(reference.linear_divergence, *call.heads, sets=ids)
        for name, value in named(out).items():
            np.testing.assert_allclose(
                value.detach(), truth[name], rtol=1e-9, atol=1e-11, err_msg=f"{which} {name}"
            )
        right = call.oracle(
            reference.linear_divergence_backward, *call.heads, sets=ids, **call.upstream()
        )
        ours = torch.autograd.grad(call.loss(out), leaves)
        for x, y in zip(ours, right, strict=False):
            scale = 10 * max(1.0, float(np.abs(y).max()))
            assert_gradients(x, y, torch.float64, scale=scale)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_given_logits_are_the_oracle(dtype: Any, kind: str, chain: str, backend: str) -> None:
    call = Call(dtype, kind, chain)
    for which in SETS:
        ids = sets_of(which)
        logits = (call.hidden @ call.weight.T).requires_grad_()
        others = call.teacher_hidden @ call.teacher_weight.T
        options = {**call.options, "sampling_mask": ll.SamplingMask.from_lists(ids)}
        out = ll.divergence(logits, others, call.mask, extras=EXTRAS, backend=backend, **options)
        truth = call.oracle(reference.divergence, logits, others, sets=ids)
        plain = None
        if dtype != torch.float64:
            plain = named(ll.divergence(
                logits.detach(), others, call.mask, extras=EXTRAS, backend="torch", **options
            ))  # fmt: skip
        for name, value in named(out).items():
            by_torch = None if plain is None else plain[name]
            assert_values(value, truth[name], dtype, plain=by_torch)
        (ours,) = torch.autograd.grad(call.loss(out), logits)
        right, _ = call.oracle(
            reference.divergence_backward, logits, others, sets=ids, **call.upstream()
        )
        assert_gradients(ours, right, dtype, scale=4.0 * max(1.0, float(np.abs(right).max())))


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracles_gradients_are_finite_differences(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 3, 11)) * 2
    ids = [[1, 4, 9], [], [10, 0]]
    chain = {"softcap": 3.0, "logit_scale": 1.2, "bias": rng.normal(size=11), "temperature": 0.7}
    options = {"kind": kind, "beta": beta_of(kind), "student": chain, "sets": ids}
    gd, ge = rng.normal(size=(2, 3))

    def value(x: Any) -> float:
        out = reference.divergence(x, others, **options)
        return float(np.sum(gd * out["divergence"] + ge * out["entropy"]))

    ours, _ = reference.divergence_backward(
        logits, others, g_divergence=gd, g_entropy=ge, **options
    )
    step, found = 1e-6, np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        sides = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            sides.append(value(moved))
        found[place] = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(ours, found, rtol=1e-6, atol=1e-8)
    assert not ours[0, 0] and ours[1].all()
    # the definition: what is left of both, by itself
    left = reference.divergence(
        logits[:1, ids[0]], others[:1, ids[0]], kind=kind, beta=beta_of(kind)
    )
    plain = reference.divergence(logits, others, kind=kind, beta=beta_of(kind), sets=ids)
    for name, of_all in plain.items():
        np.testing.assert_allclose(of_all[:1], left[name], rtol=1e-12, atol=1e-14)


def outcome(call: Call, ids: Any, **changed: Any) -> list[Any]:
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, **call.options, **changed,
        sampling_mask=ll.SamplingMask.from_lists(ids),
    )  # fmt: skip
    gradients = torch.autograd.grad(call.loss(out), [hidden, weight])
    return [x.detach() for x in (*named(out).values(), *gradients)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_set_is_none(kind: str) -> None:
    """All ids, and no set at all, are a call without the argument."""
    call = Call(torch.float64, kind, "both")
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, **call.options
    )
    whole = [*named(out).values(), *torch.autograd.grad(call.loss(out), [hidden, weight])]
    for which in ("all", "none"):
        for a, b in zip(whole, outcome(call, sets_of(which)), strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_how_it_is_split_is_not_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, the order of ids, and which other rows there are, of rows of the weight that are
    gathered: a dense product's bits are the vendor's."""
    machine(monkeypatch, gathered=1e18)
    call, ids = Call(torch.float32, kind, "both"), sets_of("large")
    first, before = outcome(call, ids), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for a, b in zip(first, outcome(call, ids), strict=True):
                assert_bitwise_equal(a, b)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(first, outcome(call, [row[::-1] for row in ids]), strict=True):
        assert_bitwise_equal(a, b)
    few = sets_of("few")
    alone = ll.linear_divergence(
        call.hidden[4:5], call.weight, call.teacher_hidden[4:5], call.teacher_weight,
        sampling_mask=ll.SamplingMask.from_lists(few[4:5]), kind=kind, beta=beta_of(kind),
    )  # fmt: skip
    among = ll.linear_divergence(
        *call.heads, sampling_mask=ll.SamplingMask.from_lists(few), kind=kind, beta=beta_of(kind)
    )
    for a, b in zip(alone[:3], among[:3], strict=True):
        assert_bitwise_equal(a[0], b[4])


def test_masked_rows_are_not_read_and_give_zeros() -> None:
    for kind in KINDS:
        call, ids = Call(torch.float32, kind), sets_of("mixed")
        want = outcome(call, ids)
        for x in (call.hidden, call.teacher_hidden):
            x[~call.mask] = float("nan")
        ids = [row if keep else [V + 3] for row, keep in zip(ids, call.mask, strict=True)]
        for a, b in zip(want, outcome(call, ids), strict=True):
            assert_bitwise_equal(a, b)
        assert not want[0][~call.mask].any() and not want[5][~call.mask].any()
    call.mask[:] = False
    assert not any(x.any() for x in outcome(call, ids))


def test_tokens_without_mass_within_a_set() -> None:
    """As in a call without sets; a set of nothing else is a row error."""
    p = torch.tensor([[0.3, 1.0, -INF, 0.5, 7.0]], requires_grad=True)
    q = torch.tensor([[0.1, 0.2, -INF, -INF, 3.0]])
    given = ll.SamplingMask.from_lists([[3, 0, 2, 1]])
    for kind in KINDS:
        options = {"kind": kind, "beta": beta_of(kind), "extras": EXTRAS}
        out = ll.divergence(p, q, sampling_mask=given, **options)
        right = ll.divergence(p[:, :4], q[:, :4], **options)
        for name, value in named(out).items():
            torch.testing.assert_close(value, named(right)[name])
        (gradient,) = torch.autograd.grad(out.divergence.sum(), p)
        assert gradient[0, 2] == 0 and gradient[0, 4] == 0
    for backend in ("auto", "torch"):
        for ids, message in (([2], "row 0: it has no finite logit"),
                             ([2, 3], "row 0: its teacher has no finite logit")):  # fmt: skip
            sets = ll.SamplingMask.from_lists([ids])
            with pytest.raises(ValueError, match=message):
                ll.divergence(p, q, sampling_mask=sets, backend=backend)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_is_torch(kind: str) -> None:
    for which in SETS:
        call = Call(torch.float32, kind, "both")
        given = ll.SamplingMask.from_lists(sets_of(which))
        options = call.options
        arrays = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
        mask, more = call.mask.numpy(), {"extras": EXTRAS, "sampling_mask": given}
        ours = ll.linear_divergence(*(x.numpy() for x in call.heads), mask, **more, **arrays)
        want = ll.linear_divergence(*call.heads, call.mask, **more, **options)
        logits = (call.hidden @ call.weight.T, call.teacher_hidden @ call.teacher_weight.T)
        rows = ll.divergence(*(x.numpy() for x in logits), mask, **more, **arrays)
        others = ll.divergence(*logits, call.mask, **more, **options)
        for a, b in ((ours, want), (rows, others)):
            for name, value in named(a).items():
                np.testing.assert_allclose(
                    value, named(b)[name].numpy(), rtol=2e-6, atol=4e-6, err_msg=f"{which} {name}"
                )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_properties(data: st.DataObject) -> None:
    """One id leaves nothing to differ in; never negative; 0 of equals; others do not matter."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vocab, kind = (
        data.draw(st.sampled_from([1, 2, 65, 2049, 4500])),
        data.draw(st.sampled_from(KINDS)),
    )
    options: dict[str, Any] = {"kind": kind, "beta": beta_of(kind)}
    logits, others = rng.normal(size=(2, 3, vocab)) * data.draw(st.sampled_from([1.0, 20.0]))
    ids = [rng.permutation(vocab)[: rng.integers(1, vocab + 1)].tolist() for _ in range(3)]
    given = ll.SamplingMask.from_lists(ids)
    out = ll.divergence(logits, others, sampling_mask=given, **options)
    truth = reference.divergence(logits, others, sets=ids, **options)
    for name in ("divergence", "entropy", "teacher_entropy"):
        np.testing.assert_allclose(getattr(out, name), truth[name], rtol=1e-9, atol=1e-11)
    assert (out.divergence >= 0).all()
    alone = ll.SamplingMask.from_lists([row[:1] for row in ids])
    none = ll.divergence(logits, others, sampling_mask=alone, **options)
    assert (none.divergence < 1e-15).all() and (none.entropy == 0).all()
    same = ll.divergence(logits, logits.copy(), sampling_mask=given, **options)
    assert (same.divergence < 1e-12).all()
    for i, row in enumerate(ids):
        outside = np.setdiff1d(np.arange(vocab), row)
        logits[i, outside], others[i, outside] = 1e3, -1e3
    moved = ll.divergence(logits, others, sampling_mask=given, **options)
    assert_bitwise_equal(out.divergence, moved.divergence)


def test_what_does_not_fit_is_refused_by_name() -> None:
    logits, others = torch.randn(2, 3, 8)
    refusals = {
        "sampling_mask must have a row for each of 3 tokens, got 2": [[1], [2]],
        r"row 1: sampling_mask has token 8, outside \[0, 8\)": [[1], [2, 8], []],
        "row 2: sampling_mask has token 3 twice": [[], [2], [3, 1, 3]],
    }
    for message, ids in refusals.items():
        for backend in ("auto", "torch"):
            with pytest.raises(ValueError, match=f"divergence: {message}"):
                ll.divergence(
                    logits, others, backend=backend,
                    sampling_mask=ll.SamplingMask.from_lists(ids),
                )  # fmt: skip
    with pytest.raises(TypeError, match="sampling_mask must be a SamplingMask or None"):
        ll.divergence(logits, others, sampling_mask=[[1], [2], [3]])
    hidden, weight = torch.randn(3, 4), torch.randn(8, 4)
    sets = ll.SamplingMask.from_lists([[1], [2, 5], [3]])
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        ll.linear_divergence(hidden, weight, hidden, weight, sampling_mask=sets, memory_budget=10)


def test_frozen_parts_get_no_gradient() -> None:
    call, ids = Call(torch.float32, "jsd"), sets_of("mixed")
    of_hidden, of_weight = outcome(call, ids)[5:]
    for frozen in ("hidden", "weight"):
        leaves = [x.clone().requires_grad_(name != frozen) for name, x in
                  zip(("hidden", "weight"), call.heads[:2], strict=True)]  # fmt: skip
        teacher = [x.clone().requires_grad_() for x in call.heads[2:]]
        out = ll.linear_divergence(
            *leaves, *teacher, call.mask, **call.options,
            sampling_mask=ll.SamplingMask.from_lists(ids),
        )  # fmt: skip
        call.loss(out).backward()
        assert all(x.grad is None for x in teacher)
        assert [x.grad is None for x in leaves] == [frozen == "hidden", frozen == "weight"]
        for leaf, right in zip(leaves, (of_hidden, of_weight), strict=True):
            if leaf.grad is not None:
                torch.testing.assert_close(leaf.grad, right, rtol=1e-5, atol=1e-6)


def test_the_op_by_torchs_own_checker() -> None:
    sets = RowSets(torch.tensor([0, 2]), torch.tensor([0, 2, 5]), torch.arange(5).int())
    chain = Transform(None, None, 1.0, 1.0, 0.0)
    values = torch.randn(5, requires_grad=True)
    for kind in KINDS:
        measure = Measure(kind, beta_of(kind), "cpu")
        teacher = TeacherChain(*chain)
        check_op(set_pairs, values, torch.randn(5), sets, chain, teacher, measure, Shard())
