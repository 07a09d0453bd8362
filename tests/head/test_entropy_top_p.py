"""entropy_top_p: entropies of each row's likeliest tokens, log-probs of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from tests.support import cases
from tests.support.heads import B, T, batch, problem
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

TOP_P = (0.05, 0.8, 0.999)


def oracle(h: Any, w: Any, t: Any, mask: Any, top_p: float, chain: dict[str, Any]) -> Any:
    """The statistics and (gradient by logp, gradient by entropy) of unit upstream gradients."""
    arrays = [cases.to_numpy(x) for x in (h, w)]
    logits = arrays[0] @ arrays[1].T
    ids = reference.likeliest(logits, top_p, **chain)
    # what the entropy of a set is has nothing to do with its target
    anyone = np.array([row[0] for row in ids])
    options = {"mask": mask.numpy(), **chain}
    whole = reference.linear_token_stats(*arrays, t.numpy(), **options)
    some = reference.linear_token_stats(*arrays, anyone, sets=ids, **options)

    def gradients(g_logp: Any, g_entropy: Any) -> list[Any]:
        own = reference.linear_token_stats_backward(*arrays, t.numpy(), g_logp=g_logp, **options)
        other = reference.linear_token_stats_backward(
            *arrays, anyone, g_entropy=g_entropy, sets=ids, **options
        )
        return [a + b for a, b in zip(own, other, strict=True)]

    return whole, some["entropy"], gradients


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("top_p", TOP_P)
@pytest.mark.parametrize("kind", cases.CHAINS)
def test_against_the_oracle(kind: str, top_p: float, backend: str) -> None:
    """Peaked rows, and flat ones whose 256 largest do not reach top_p."""
    n, vocab = 11, 3001
    h, w, t = problem(3, n, 16, vocab, torch.float64)
    mask, options, leaves = cases.mask(3, n), cases.chain(kind, 3, n, vocab), [h, w]
    if "bias" in options:
        options["bias"] = options["bias"].double().requires_grad_()
        leaves.append(options["bias"])
    out = ll.linear_token_stats(
        h, w, t, mask=mask, entropy_top_p=top_p, backend=backend, extras=("sum_p2",), **options
    )
    detached = {k: v.detach() if torch.is_tensor(v) else v for k, v in options.items()}
    whole, entropy, gradients = oracle(h, w, t, mask, top_p, cases.numpy_chain(detached))
    assert_values(out.logp / 10, whole["logp"] / 10, torch.float64)
    assert_values(out.entropy / 10, entropy / 10, torch.float64)
    np.testing.assert_allclose(out.extras["sum_p2"], whole["sum_p2"], rtol=1e-9)
    assert (out.entropy.detach().numpy() <= whole["entropy"] + 1e-9).all()
    g = [x.double() for x in cases.upstream(3, n)]
    ours = torch.autograd.grad((out.logp * g[0] + out.entropy * g[1]).sum(), leaves)
    right = gradients(g[0].numpy(), g[1].numpy())
    for a, b in zip(ours, right, strict=False):
        assert_gradients(a, b, torch.float64, scale=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    h, w, t = problem(4, 9, 16, 3001, dtype)
    out = ll.linear_token_stats(h, w, t, entropy_top_p=0.8, logits_dtype=torch.float32)
    _, entropy, _ = oracle(h, w, t, torch.ones(9, dtype=torch.bool), 0.8, {})
    # a border that falls within rounding may move by a token
    np.testing.assert_allclose(out.entropy.detach(), entropy, atol=2e-3)
    plain = ll.linear_token_stats(h, w, t, logits_dtype=torch.float32)
    assert_bitwise_equal(out.logp, plain.logp)


def test_it_is_finite_differences() -> None:
    """Where no border moves."""
    h, w, t = problem(5, 4, 6, 300, torch.float64)
    out = ll.linear_token_stats(h, w, t, entropy_top_p=0.8)
    (ours,) = torch.autograd.grad(out.entropy.sum(), h)

    def value(x: Any) -> float:
        return float(ll.linear_token_stats(x, w.detach(), t, entropy_top_p=0.8).entropy.sum())

    step, found = 1e-7, torch.zeros_like(h)
    for place in np.ndindex(*h.shape):
        sides = []
        for sign in (1, -1):
            moved = h.detach().clone()
            moved[place] += sign * step
            sides.append(value(moved))
        found[place] = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(ours, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", ["siren", "bonus"])
def test_the_loss_is_that_of_given_entropies(name: str, backend: str) -> None:
    data = batch(30)
    spec = replace(ll.presets["siren"], max_length=T, entropy=ll.Siren(0.5, 1.0))
    if name == "bonus":
        spec = replace(ll.presets["dapo"], entropy=ll.EntropyBonus(0.1))
    head = {k: data[k] for k in ("hidden", "weight", "targets")}
    with torch.no_grad():
        stats = ll.linear_token_stats(**head, mask=data["mask"], entropy_top_p=0.8)
    ids = torch.arange(B * T).view(B, T)
    known: dict[str, Any] = {"token_ids": ids}
    known["batch"] = ll.batch_stats(
        stats.logp, data["advantages"], data["mask"], spec, entropy=stats.entropy, token_ids=ids,
        old_logp=data["old_logp"], seed=0, step=0,
    )  # fmt: skip
    leaves = [data[k].clone().requires_grad_() for k in ("hidden", "weight")]
    scored = ll.linear_token_stats(
        *leaves, data["targets"], mask=data["mask"], entropy_top_p=0.8, backend=backend
    )
    right, metrics = ll.policy_loss(
        scored.logp, data["old_logp"], data["advantages"], data["mask"], spec,
        entropy=scored.entropy, **known,
    )  # fmt: skip
    expected = torch.autograd.grad(right, leaves)
    given = {**data, "hidden": leaves[0], "weight": leaves[1]}
    out = ll.linear_policy_loss(
        **given, spec=spec, entropy_top_p=0.8, backend=backend, selected_ids=torch.tensor([1, 2]),
        **known,
    )  # fmt: skip
    assert torch.equal(out.loss, right)
    assert_bitwise_equal(out.entropy, scored.entropy.detach())
    assert_bitwise_equal(out.metrics["actor/entropy"], metrics["actor/entropy"])
    assert out.selected.shape == (B, T, 2)
    for a, b in zip(torch.autograd.grad(out.loss, leaves), expected, strict=True):
        assert_bitwise_equal(a, b)
    plain = ll.linear_policy_loss(**data, spec=spec, backend=backend, **known)
    assert not torch.equal(plain.entropy, out.entropy)


def test_with_an_adapter_a_tail_and_masked_rows() -> None:
    h, w, t = problem(6, 12, 16, 3001, torch.float64)
    g = torch.Generator().manual_seed(7)
    A, up = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 16), (3001, 2)))
    mask = cases.mask(6, 12)
    factors = [x.clone().requires_grad_() for x in (A, up / 8)]
    ours = ll.linear_token_stats(h, w, t, mask=mask, adapter=(*factors, 0.5), entropy_top_p=0.8)
    merged = ll.linear_token_stats(
        h, w + 0.5 * factors[1] @ factors[0], t, mask=mask, entropy_top_p=0.8
    )
    assert_values(ours.entropy, merged.entropy, torch.float64)
    pairs = (torch.autograd.grad(x.entropy.sum(), (h, w, *factors)) for x in (ours, merged))
    for a, b in zip(*pairs, strict=True):
        assert_gradients(a, b, torch.float64, scale=1000)
    poisoned = torch.where(mask[:, None], h.detach(), torch.nan).requires_grad_()
    again = ll.linear_token_stats(poisoned, w, t, mask=mask, entropy_top_p=0.8)
    plain = ll.linear_token_stats(h, w, t, mask=mask, entropy_top_p=0.8)
    assert_bitwise_equal(again.entropy, plain.entropy)
    (d_hidden,) = torch.autograd.grad(again.entropy.sum(), poisoned)
    assert d_hidden.isfinite().all() and not d_hidden[~mask].any()
    sparse = ll.linear_token_stats(h, w, t, mask=mask, entropy_top_p=0.8, tail_mass=0.3)
    assert_values(sparse.entropy, plain.entropy.detach(), torch.float64)
    nobody = ll.linear_token_stats(h, w, t, mask=torch.zeros_like(mask), entropy_top_p=0.8)
    assert not nobody.entropy.any()
    assert not torch.autograd.grad(nobody.entropy.sum(), h)[0].any()


def test_all_of_the_mass_is_no_limit() -> None:
    h, w, t = problem(8, 5, 16, 300, torch.float32)
    for top_p in (None, 1, 1.0):
        out = ll.linear_token_stats(h, w, t, entropy_top_p=top_p)
        assert_bitwise_equal(out.entropy, ll.linear_token_stats(h, w, t).entropy)


def test_what_it_refuses() -> None:
    h, w, t = (x.detach() for x in problem(9, 5, 16, 300, torch.float32))
    with pytest.raises(ValueError, match=r"entropy_top_p must be in \(0, 1\] or None, got 0"):
        ll.linear_token_stats(h, w, t, entropy_top_p=0)
    with pytest.raises(ValueError, match=r"entropy_top_p must be None for NumPy inputs, got 0\.8"):
        ll.linear_token_stats(*(x.numpy() for x in (h, w, t)), entropy_top_p=0.8)
    sets = ll.SamplingMask.from_lists([[int(x)] for x in t])
    with pytest.raises(NotImplementedError, match="entropy_top_p with a sampling_mask"):
        ll.linear_token_stats(h, w, t, entropy_top_p=0.8, sampling_mask=sets)
    h[2] = torch.nan
    with pytest.raises(ValueError, match="row 2: its logits hold a NaN"):
        ll.linear_token_stats(h, w, t, entropy_top_p=0.8)
