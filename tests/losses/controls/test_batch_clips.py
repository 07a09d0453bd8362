"""Bounds and weights that the batch chooses: the authors' numbers, any split, each call alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless.loss.evaluate.inputs import BatchStats, Totals
from logitless.loss.spec import Bapo, M2po, PolicyLossSpec, Reinforce, Steer
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from logitless.ops.policy_loss import policy_loss
from logitless.reference.ratio import batch_bounds, steered
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, Batch, make_batch
from tests.support.paths import TESTS

GOLDEN = json.loads((TESTS / "golden/batch_clips.json").read_text())
ARRAYS = ("logp", "old_logp", "advantages", "mask")
NAMES = [name for name, spec in SPECS.items() if isinstance(spec.surrogate, (M2po, Bapo))]


def stats_of(batch: Batch, spec: PolicyLossSpec, **options: Any) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec,
        **{"old_logp": batch.old_logp, "rollout_logp": batch.rollout_logp,
           "token_ids": batch.token_ids, "seed": 0, "step": 0, **options},
    )  # fmt: skip


# ---- the authors' code, which computes M2PO's bounds in float32


@pytest.mark.parametrize("number", range(len(GOLDEN)))
@pytest.mark.parametrize("name, rtol", [("m2po", 1e-6), ("bapo", 1e-12)])
def test_the_authors_numbers(name: str, rtol: float, number: int) -> None:
    case = {k: np.array(x) for k, x in GOLDEN[number].items() if k in ARRAYS}
    expected, spec = GOLDEN[number][name], presets[name]
    if name == "m2po":
        spec = replace(spec, surrogate=M2po(0.04, 0.05, 0.06))
    else:
        spec = replace(spec, surrogate=Bapo(target=GOLDEN[number]["target"]))
    stats = batch_stats(
        case["logp"], case["advantages"], case["mask"], spec, old_logp=case["old_logp"],
        token_ids=np.arange(case["mask"].size).reshape(case["mask"].shape), seed=0, step=0,
    )  # fmt: skip
    bounds = [math.exp(x) for x in stats.log_bounds]
    # where nothing is clipped the authors' upper bound is 100000
    assert [bounds[0], min(bounds[1], 1e5)] == pytest.approx(expected["bounds"], rel=rtol)
    _, found = coefficients(*(case[k] for k in ARRAYS), spec)
    assert found.loss == pytest.approx(expected["loss"], rel=rtol)
    g = np.where(case["mask"], np.array(expected["grad"]), 0.0).ravel()
    # M2PO's token at its bound: its gradient is there or not as float32 rounds the bound
    size = abs(case["logp"] - case["old_logp"]).ravel()
    at_bound = np.isclose(size, stats.log_bounds[1], rtol=1e-6)
    np.testing.assert_allclose(found.g_logp[~at_bound], g[~at_bound], rtol=1e-9, atol=1e-15)
    assert at_bound.sum() <= 1


def test_the_authors_numbers_are_of_all_kinds() -> None:
    m2po = [tuple(x["m2po"]["bounds"]) for x in GOLDEN]
    assert (0.0, 100000.0) in m2po and len(set(m2po)) > 5
    bapo = [tuple(x["bapo"]["bounds"]) for x in GOLDEN]
    assert {(0.6, 1.2), (0.8, 2.0)} < set(bapo) and len(set(bapo)) >= 4


# ---- bounds


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bounds_are_the_oracles(data: st.DataObject) -> None:
    """Of any tokens: many of one size, none harmful, a budget that all but one exhaust."""
    n = data.draw(st.integers(1, 60))
    sizes = st.one_of(st.sampled_from([0.0, 0.1, -0.2, 0.2, 3.0]), st.floats(-8, 8))
    d, a = (np.array(data.draw(st.lists(sizes, min_size=n, max_size=n))) for _ in range(2))
    spec = PolicyLossSpec(
        surrogate=data.draw(
            st.sampled_from(
                [M2po(0.04, 0.0, 0.0), M2po(1.0), M2po(1e-9, 0.0, 0.0), M2po(30.0, 1.0, 0.1),
                 Bapo(), Bapo(0.3, 1.0, 0.07, 1.0, 3.0, 0.3, 2.0), Bapo(target=0.0)]
            )
        )
    )  # fmt: skip
    old = np.zeros(n)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    stats = batch_stats(d, a, mask, spec, old_logp=old, token_ids=np.arange(n), seed=0, step=0)
    expected = batch_bounds(spec.surrogate, d, a, mask)
    assert expected is not None
    found = tuple(math.exp(x) for x in stats.log_bounds)
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_split_change_no_bit(name: str) -> None:
    batch, spec = make_batch(60, shape=(8, 40)), SPECS[name]
    expected = stats_of(batch, spec).log_bounds
    order = np.random.default_rng(0).permutation(8)
    assert stats_of(batch.rows(order), spec).log_bounds == expected
    pieces = [batch.rows([i]) for i in order]
    lists = {k: [getattr(x, k) for x in pieces] for k in ("old_logp", "rollout_logp", "token_ids")}
    parts = [[getattr(x, k) for x in pieces] for k in ("logp", "advantages", "mask")]
    assert batch_stats(*parts, spec, **lists, seed=0, step=0).log_bounds == expected


def test_within_the_budget_nothing_is_clipped() -> None:
    batch = make_batch(61)
    _, free = coefficients(*batch.inputs, PolicyLossSpec(surrogate=M2po(9.0)))
    _, plain = coefficients(*batch.inputs, SPECS["unclipped"])
    np.testing.assert_array_equal(free.g_logp, plain.g_logp)
    assert free.metrics["actor/pg_clipfrac"] == 0.0


def test_m2po_by_hand() -> None:
    """Harmful sizes 0.1, 0.2, 0.3: mean(0.01, 0.04, 0.04) = 0.03 is in the budget, with 0.09 in
    place of the last it is not. The bounds are those of the token of 0.2, which is not clipped."""
    d = np.array([0.1, 0.2, -0.3, 5.0, -5.0])
    a = np.array([1.0, 1.0, -1.0, -1.0, 1.0])
    spec = PolicyLossSpec(surrogate=M2po(0.031, 0.0, 0.0), aggregation="token-sum")
    _, found = coefficients(d, 0 * d, a, d == d, spec)
    np.testing.assert_allclose(found.g_logp, [-(math.e**0.1), -(math.e**0.2), 0.0, math.e**5,
                                              -(math.e**-5)], rtol=1e-14)  # fmt: skip
    assert found.metrics["actor/pg_clipfrac"] == pytest.approx(0.2)


# ---- calls


@pytest.mark.parametrize("name", ["m2po_tight", "bapo_low", "bapo_far"])
def test_micro_scope_looks_at_each_call(name: str) -> None:
    """As of a call that is the whole batch, whatever batch or totals it is a part of."""
    batch, spec = make_batch(62), SPECS[name]
    surrogate: Any = spec.surrogate
    micro = replace(spec, surrogate=replace(surrogate, scope="micro"))
    assert not micro.needs_means and micro.surveys_call
    stats, totals = stats_of(batch, micro), Totals(int(batch.mask.sum()), 5)
    bounds = set()
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = batch.rows(rows)
        bounds.add(stats_of(part, spec).log_bounds)
        _, alone = coefficients(*part.inputs, spec, **part.optional)
        share = part.mask.sum() / batch.mask.sum()
        for known in ({"batch": stats}, {"totals": totals}):
            _, found = coefficients(*part.inputs, micro, **part.optional, **known)
            assert found.metrics["actor/pg_clipfrac"] == pytest.approx(
                alone.metrics["actor/pg_clipfrac"] * share
            )
            zeros = (alone.g_logp == 0) == (found.g_logp == 0)
            assert zeros.all()
    assert len(bounds) == {"m2po_tight": 3, "bapo_low": 1, "bapo_far": 2}[name]


def test_what_does_not_fit_is_refused() -> None:
    batch, spec = make_batch(63), presets["m2po"]
    totals = Totals(int(batch.mask.sum()), 5)
    with pytest.raises(ValueError, match=r"spec.surrogate=M2po.*pass batch=batch_stats"):
        policy_loss(*batch.inputs, spec, totals=totals)
    other = stats_of(batch, presets["bapo"])
    with pytest.raises(ValueError, match="batch was made for surrogate=Bapo"):
        policy_loss(*batch.inputs, spec, batch=other, token_ids=batch.token_ids)
    plain = stats_of(batch, presets["ppo"])
    with pytest.raises(ValueError, match="batch was made for surrogate=None"):
        policy_loss(*batch.inputs, spec, batch=plain, token_ids=batch.token_ids)
    inference = replace(spec, ratio="inference")
    with pytest.raises(ValueError, match=r"rollout_logp must be given with spec.surrogate=M2po"):
        stats_of(batch, inference, rollout_logp=None)


# ---- STEER


@pytest.mark.parametrize("name", ["steer", "steer_linear", "steer_gspo", "steer_floor"])
def test_order_and_split_change_no_bit_of_the_range(name: str) -> None:
    batch, spec = make_batch(64, shape=(8, 40)), SPECS[name]
    whole = stats_of(batch, spec, entropy=batch.entropy)
    least, most = whole.change_range
    assert 0.0 <= least < 0.1 < most
    order = np.random.default_rng(1).permutation(8)
    pieces = [batch.rows([i]) for i in order]
    names = ("old_logp", "rollout_logp", "token_ids", "entropy")
    lists = {k: [getattr(x, k) for x in pieces] for k in names}
    parts = [[getattr(x, k) for x in pieces] for k in ("logp", "advantages", "mask")]
    assert batch_stats(*parts, spec, **lists, seed=0, step=0).change_range == (least, most)


def test_steer_by_hand() -> None:
    """p = 1/2 in all rows: x = |A / old_p| / 4 * |H - log 2|, here 1, 3 and 5 quarters."""
    half, a = np.full(3, math.log(0.5)), np.array([1.0, -3.0, 2.5])
    old, h = np.log([1.0, 1.0, 0.5]), np.full(3, math.log(2.0) + 1.0)
    rest = {"entropy": h, "token_ids": np.arange(3)}
    spec = PolicyLossSpec("none", Reinforce(), Steer(0.5, 1.0), aggregation="token-sum")
    _, found = coefficients(half, old, a, a == a, spec, **rest)
    np.testing.assert_allclose(found.g_logp / -a, [0.5**0.2, 0.5**0.6, 0.5], rtol=1e-14)
    linear = replace(spec, control=Steer(0.5, 1.0, linear=True))
    _, found = coefficients(half, old, a, a == a, linear, **rest)
    np.testing.assert_allclose(found.g_logp / -a, [1.0, 0.75, 0.5], rtol=1e-14)
    # where all are equal, the mean weight; where none changes the entropy much, the floor decides
    equal = {k: x[:1] for k, x in rest.items()}
    _, found = coefficients(half[:1], old[:1], a[:1], np.ones(1, bool), linear, **equal)
    assert found.g_logp[0] == -0.75
    floor = replace(spec, control=Steer(0.5, 1.0, floor=2.5))
    _, found = coefficients(half, old, a, a == a, floor, **rest)
    np.testing.assert_allclose(found.g_logp / -a, 0.5 ** np.array([0.1, 0.3, 0.5]), rtol=1e-14)


def test_steer_of_probabilities_at_their_ends() -> None:
    """p of 0 and 1, old_p of 0: the authors' limits keep every weight a number in its range."""
    logp, old = np.array([-0.0, -40.0, -1.0, -200.0]), np.array([-40.0, 0.0, -30.0, -200.0])
    a, h, mask = np.array([1.0, -1.0, 2.0, -2.0]), np.full(4, 0.7), np.ones(4, bool)
    for control in (Steer(0.8), Steer(0.8, 1.2, linear=True)):
        spec = PolicyLossSpec("none", Reinforce(), control, aggregation="token-sum")
        _, found = coefficients(logp, old, a, mask, spec, entropy=h, token_ids=np.arange(4))
        weights = found.g_logp / -a
        np.testing.assert_allclose(weights, steered(control, a, logp, old, h), rtol=1e-12)
        assert weights.min() >= control.low and weights.max() <= control.high


def test_steer_beyond_the_range_of_its_batch_stays_in_its_own() -> None:
    """What changes the entropy more than all that the batch was looked at has the least weight."""
    batch = make_batch(65)
    smaller = replace(batch, advantages=0.1 * batch.advantages)
    for name in ("steer", "steer_linear"):
        spec = replace(presets[name], aggregation="token-sum")
        old = stats_of(smaller, spec, entropy=batch.entropy)
        _, found = coefficients(*batch.inputs, spec, **batch.optional, batch=old)
        _, plain = coefficients(*batch.inputs, replace(spec, control=None))
        on = plain.g_logp != 0
        weights = found.g_logp[on] / plain.g_logp[on]
        control: Any = spec.control
        assert weights.min() == pytest.approx(control.low, abs=1e-12)
        assert weights.max() <= control.high + 1e-12


@pytest.mark.parametrize("name", ["steer", "steer_linear"])
def test_micro_steer_looks_at_each_call(name: str) -> None:
    batch, spec = make_batch(66), presets[name]
    micro = replace(spec, control=replace(spec.control, scope="micro"))  # type: ignore[type-var]
    assert spec.needs_means and not micro.needs_means and micro.surveys_call
    totals = Totals(int(batch.mask.sum()), 5)
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = batch.rows(rows)
        _, alone = coefficients(*part.inputs, spec, **part.optional)
        _, found = coefficients(*part.inputs, micro, **part.optional, totals=totals)
        share = part.mask.sum() / batch.mask.sum()
        np.testing.assert_allclose(found.g_logp, alone.g_logp * share, rtol=1e-12)
    with pytest.raises(ValueError, match=r"spec.control=Steer.*pass batch=batch_stats"):
        policy_loss(*batch.inputs, spec, entropy=batch.entropy, totals=totals)
    with pytest.raises(ValueError, match="needs entropy, got entropy=None"):
        stats_of(batch, spec)
