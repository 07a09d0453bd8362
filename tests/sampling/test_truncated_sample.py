"""linear_sample with top_k and top_p draws from the truncated distribution, exactly."""

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
from tests.support.draws import chi_squared, draw, total_variation
from tests.support.plans import machine
from tests.support.tolerances import assert_bitwise_equal

DRAWS = 20_000


def truth(h: torch.Tensor, w: torch.Tensor, **options: Any) -> Any:
    exact = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    return reference.truncated_probabilities(cases.to_numpy(h) @ cases.to_numpy(w).T, **exact)


def test_the_oracle_on_a_row_by_hand() -> None:
    z = np.log(np.array([0.1, 0.4, 0.1, 0.3, 0.1]))
    two = [0, 4 / 7, 0, 3 / 7, 0]
    np.testing.assert_allclose(reference.truncated_probabilities(z, top_k=2), two)
    # Of the equal ones the first.
    expected = np.array([0.1, 0.4, 0, 0.3, 0]) / 0.8
    np.testing.assert_allclose(reference.truncated_probabilities(z, top_k=3), expected)
    np.testing.assert_allclose(reference.truncated_probabilities(z, top_p=0.75), expected)
    # The share is of what top_k left: 4/7 reaches a half, 0.4 would not.
    np.testing.assert_allclose(
        reference.truncated_probabilities(z, top_k=2, top_p=0.5), [0, 1, 0, 0, 0]
    )
    np.testing.assert_allclose(reference.truncated_probabilities(z, top_p=1.0), np.exp(z))
    # 0.3 is three quarters of 0.4, and 0.1 a quarter.
    np.testing.assert_allclose(reference.truncated_probabilities(z, min_p=0.7), two)
    np.testing.assert_allclose(
        reference.truncated_probabilities(z, top_k=3, top_p=0.9, min_p=0.8), [0, 1, 0, 0, 0]
    )


@pytest.mark.parametrize(
    ("vocab", "spread", "options"),
    [
        (7, 1.0, {"top_k": 3}),
        (5000, 1.0, {"top_k": 50, "temperature": 0.6}),
        (5000, 4.0, {"top_p": 0.9}),  # peaked: the nucleus is among the kept
        (5000, 0.3, {"top_p": 0.9}),  # flat: thousands, from a second product
        (5000, 1.0, {"top_k": 2000}),  # more than are ever kept
        (5000, 1.0, {"top_k": 300, "top_p": 0.7}),
        (5000, 1.0, {"top_k": 3000, "top_p": 0.5}),
        (5000, 2.0, {"top_p": 0.95, "softcap": 3.0, "logit_scale": 1.5}),
        (4097, 1.0, {"top_p": 0.8, "bias": "half impossible"}),
        (600, 1.0, {"top_k": 500, "bias": "half impossible"}),  # fewer are possible
        (5000, 2.0, {"min_p": 0.05}),  # tens, among the kept
        (5000, 0.3, {"min_p": 0.05}),  # hundreds, from a second product
        (5000, 1.0, {"top_k": 400, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3}),
    ],
)
def test_distribution(vocab: int, spread: float, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    h = torch.randn(1, 4, generator=generator)
    w = torch.randn(vocab, 4, generator=generator) * spread
    if "bias" in options:
        bias = torch.where(torch.arange(vocab) % 2 == 0, 0.0, -float("inf"))
        options = {**options, "bias": bias}
    token = draw(h, w, DRAWS, **options)
    p = truth(h, w, **options)[0]
    assert 1 < (p > 0).sum() < vocab
    # Both are functions of the arguments, so this passes or fails for good.
    assert abs(chi_squared(token, p)) < 4.5
    assert total_variation(token, p) < 4.5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    vocab=st.integers(1, 3000),
    levels=st.integers(1, 12),
    top_k=st.none() | st.integers(1, 3500),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
)
def test_every_draw_is_in_the_set(
    seed: int, vocab: int, levels: int, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    """Few levels of logits: the border runs through equal ones, where the smaller token counts."""
    g = torch.Generator().manual_seed(seed)
    # Products with one entry of the hidden state are exact.
    w = torch.randint(0, levels, (vocab, 1), generator=g).double() / 2
    h = torch.ones(200, 1, dtype=torch.float64)
    # Not the very share of a level, whose rounding would decide.
    min_p = None if min_p is None else min_p * (1 - 1e-9)
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    found = ll.linear_sample(h, w, seed=seed, step=0, row_ids=torch.arange(200), **options)
    p = truth(h[:1], w, **options)[0]
    # Where rounding decides whether top_p is reached, one more or one less is right as well.
    slack = truth(h[:1], w, top_k=top_k, top_p=min(1.0, (top_p or 1.0) + 1e-12), min_p=min_p)[0]
    assert ((p + slack)[found.token.numpy()] > 0).all()
    # The set that is returned is the set.
    (kept,) = {tuple(row) for row in found.sampling_mask.lists()}
    kept = kept or tuple(range(vocab))
    assert list(kept) in [np.flatnonzero(x).tolist() for x in (p, slack)]


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.9},
        {"top_k": 200},
        {"top_k": 90, "top_p": 0.8},
        {"min_p": 0.01},
        {"top_p": 0.95, "min_p": 0.02},
    ],
)
def test_the_second_product_draws_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows fit the kept candidates is a matter of time, never of the token."""
    h, w = torch.randn(40, 16), torch.randn(5000, 16)
    arguments = {"seed": 4, "step": 1, "row_ids": torch.arange(40), "batch_invariant": True}
    kept = ll.linear_sample(h, w, **arguments, **options)
    machine(monkeypatch, most_sampled_entries=2)
    again = ll.linear_sample(h, w, **arguments, **options)
    for one, other in zip(kept, again, strict=True):
        assert_bitwise_equal(one, other)
    assert kept.sampling_mask.lists() == again.sampling_mask.lists()
    assert_bitwise_equal(kept.kept_logp, again.kept_logp)
    few = ll.linear_sample(h, w, **arguments, **options, memory_budget="12MiB")
    assert_bitwise_equal(few.token, kept.token)


def test_kept_entries_count_in_the_budget() -> None:
    """24 bytes for each of 2 x 1000 entries of 2000 rows do not fit where the rest of it does."""
    h, w, ids = torch.randn(2000, 16), torch.randn(5000, 16), torch.arange(2000)
    arguments = {"seed": 0, "step": 0, "row_ids": ids, "memory_budget": "24MiB"}
    ll.linear_sample(h, w, **arguments)
    with pytest.raises(ValueError, match="memory_budget must be at least 4"):
        ll.linear_sample(h, w, **arguments, top_k=1000)


def test_one_token_is_the_argmax() -> None:
    h, w = torch.randn(20, 16), torch.randn(5000, 16)
    arguments = {"seed": 0, "step": 0, "row_ids": torch.arange(20)}
    best = (h.double() @ w.double().T).argmax(-1)
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert ll.linear_sample(h, w, **arguments, **options).token.tolist() == best.tolist()


def test_no_truncation_is_the_plain_draw() -> None:
    h, w = torch.randn(20, 16), torch.randn(500, 16)
    arguments = {"seed": 0, "step": 0, "row_ids": torch.arange(20)}
    plain = ll.linear_sample(h, w, **arguments)
    for options in ({"top_k": 500}, {"top_p": 1.0}, {"top_k": 900, "top_p": 1}):
        assert_bitwise_equal(ll.linear_sample(h, w, **arguments, **options).token, plain.token)


def test_logp_is_that_of_the_whole_distribution() -> None:
    h, w = torch.randn(20, 16), torch.randn(500, 16)
    found = ll.linear_sample(h, w, seed=0, step=0, row_ids=torch.arange(20), top_k=3)
    exact = reference.linear_token_stats(h.numpy(), w.numpy(), found.token.numpy())
    np.testing.assert_allclose(found.logp, exact["logp"], atol=1e-5)
    np.testing.assert_allclose(found.entropy, exact["entropy"], atol=1e-5)


def test_temperatures_differ_by_row() -> None:
    """The nucleus of a row is that at its own temperature."""
    w, h = torch.randn(3000, 4), torch.randn(1, 4)
    cold, hot, n = 0.2, 2.0, 4000
    token = draw(h, w, 2 * n, temperature=torch.tensor([cold, hot]).repeat(n), top_p=0.5)
    for start, value in enumerate((cold, hot)):
        p = truth(h, w, top_p=0.5, temperature=value)[0]
        assert abs(chi_squared(token[start::2], p)) < 4.5


def test_a_truncated_draw_belongs_to_its_row_id() -> None:
    h, w, ids = torch.randn(9, 8), torch.randn(5000, 8), torch.arange(9) * 1000
    options = {"top_p": 0.9}
    whole = ll.linear_sample(h, w, seed=1, step=2, row_ids=ids, **options)
    order = torch.tensor([4, 0, 8, 2])
    part = ll.linear_sample(h[order], w, seed=1, step=2, row_ids=ids[order], **options)
    assert part.token.tolist() == whole.token[order].tolist()
    for change in ({"seed": 2}, {"step": 3}, {"row_ids": ids + 1}):
        arguments = {"seed": 1, "step": 2, "row_ids": ids, **change}
        assert ll.linear_sample(h, w, **arguments, **options).token.tolist() != whole.token.tolist()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.02},
        {"top_k": 50, "top_p": 0.8, "softcap": 9.0, "logit_scale": 1.3, "temperature": 0.8},
        {"top_p": 0.9, "batch_invariant": True},
    ],
)  # fmt: skip
def test_what_was_sampled_is_trained_alike(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Bit for bit, in whatever batch, without batch_invariant too."""
    g = torch.Generator().manual_seed(1)
    h, w = (torch.randn(n, 24, generator=g).to(dtype) for n in (40, 5000))
    found = ll.linear_sample(h, w, seed=4, step=1, row_ids=torch.arange(40), **options)
    mask = found.sampling_mask
    assert all(row == sorted(set(row)) for row in mask.lists())
    chain = {k: v for k, v in options.items() if k not in ("top_k", "top_p", "min_p")}
    chain.pop("batch_invariant", None)
    some = torch.arange(39, -1, -3)
    for rows, sets in ((torch.arange(40), mask), (some, mask.rows(some))):
        stats = ll.linear_token_stats(h[rows], w, found.token[rows], sampling_mask=sets, **chain)
        assert_bitwise_equal(stats.logp, found.kept_logp[rows])
        full = ll.linear_token_stats(
            h[rows], w, found.token[rows], sampling_mask=sets, extras=("kept_mass",), **chain
        )
        mass = full.extras["kept_mass"]
        assert (mass < 1 + 1e-6).all() and (mass > 0).all()
    # The full log-prob is smaller by the log of the mass.
    slack = 1e-4 if dtype in (torch.float32, torch.float64) else 0.2
    whole = ll.linear_token_stats(
        h, w, found.token, sampling_mask=mask, extras=("kept_mass",), **chain
    )
    gap = found.kept_logp - found.logp + whole.extras["kept_mass"].log()
    assert gap.abs().max() < slack


def test_the_result_is_three_fields_and_its_mask() -> None:
    h, w = torch.randn(6, 16), torch.randn(500, 16)
    arguments = {"seed": 0, "step": 0, "row_ids": torch.arange(6)}
    _, logp, _ = plain = ll.linear_sample(h, w, **arguments)
    assert plain._fields == ("token", "logp", "entropy")
    assert plain.sampling_mask.lists() == [[]] * 6
    assert_bitwise_equal(plain.kept_logp, logp)
    kept = ll.linear_sample(h, w, **arguments, top_k=1)
    assert kept.sampling_mask.lists() == [[x] for x in kept.token.tolist()]
    assert (kept.kept_logp == 0).all()
    assert (kept.logp < 0).all()
    none = ll.linear_sample(h[:0], w, seed=0, step=0, row_ids=torch.arange(0), top_k=3)
    assert len(none.sampling_mask) == 0


def test_min_p_of_one_keeps_the_largest() -> None:
    h, w = torch.randn(20, 16), torch.randn(5000, 16)
    found = ll.linear_sample(h, w, seed=0, step=0, row_ids=torch.arange(20), min_p=1)
    assert found.token.tolist() == (h.double() @ w.double().T).argmax(-1).tolist()
    whole = ll.linear_sample(h, w, seed=0, step=0, row_ids=torch.arange(20), min_p=0.0)
    assert_bitwise_equal(
        whole.token, ll.linear_sample(h, w, seed=0, step=0, row_ids=torch.arange(20)).token
    )


def test_a_graph_has_no_mask() -> None:
    h, w = torch.randn(6, 16), torch.randn(500, 16)

    def call(x: torch.Tensor) -> Any:
        return ll.linear_sample(x, w, seed=0, step=0, row_ids=torch.arange(6), top_k=3)

    found = torch.compile(call, backend="eager", fullgraph=True)(h)
    assert_bitwise_equal(found.token, call(h).token)
    with pytest.raises(NotImplementedError, match="linear_sample: sampling_mask in a graph of"):
        found.sampling_mask  # noqa: B018
    with pytest.raises(NotImplementedError, match="linear_sample: sampling_mask in a graph of"):
        found.kept_logp  # noqa: B018
