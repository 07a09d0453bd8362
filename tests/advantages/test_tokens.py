"""Advantages of tokens against plain loops, and what one mask of holes may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn

from logitless import advantages, reference
from tests.advantages.draws import KINDS, array, few, given, token_batch

CLOSE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
plain = reference.advantages


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_returns_and_gae(kind: str, x: dict[str, Any]) -> None:
    gamma = x["gamma"]
    rewards, values, mask, lam = given(kind, x["rewards"], x["values"], x["mask"], x["lam"])
    want = plain.returns(x["rewards"], x["mask"], gamma)
    result = array(advantages.returns(rewards, mask, gamma=gamma))
    np.testing.assert_allclose(result, want, **CLOSE)
    for ours, theirs in ((lam, x["lam"]), (0.95, [0.95] * len(x["mask"]))):
        want = plain.gae(x["rewards"], x["values"], x["mask"], gamma, theirs)
        result = advantages.gae(rewards, values, mask, gamma=gamma, lam=ours)
        np.testing.assert_allclose(array(result.advantages), want, **CLOSE)
        with_values = np.where(x["mask"], want + x["values"], 0.0)
        np.testing.assert_allclose(array(result.returns), with_values, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_gae_of_lambda_one_is_the_return_less_the_value(kind: str, x: dict[str, Any]) -> None:
    rewards, values, mask = given(kind, x["rewards"], x["values"], x["mask"])
    result = advantages.gae(rewards, values, mask, gamma=0.9, lam=1.0)
    want = array(advantages.returns(rewards, mask, gamma=0.9))
    np.testing.assert_allclose(array(result.returns), want, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_whitened_tokens(kind: str, x: dict[str, Any]) -> None:
    rewards, mask = given(kind, x["rewards"], x["mask"])
    flat = x["mask"].ravel()
    want = np.zeros(flat.size)
    want[flat] = plain.whiten(x["rewards"].ravel()[flat], [1] * flat.sum())
    result = array(advantages.whiten(rewards, mask))
    np.testing.assert_allclose(result.ravel(), want, rtol=1e-9, atol=1e-9)
    gained = np.where(x["mask"], plain.returns(x["rewards"], x["mask"], 0.9), np.nan)
    want[flat] = plain.whiten(gained.ravel()[flat], [1] * flat.sum())
    result = array(advantages.reinforce_plus_plus(rewards, mask, gamma=0.9))
    np.testing.assert_allclose(result.ravel(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_optimal_token_baseline(kind: str, x: dict[str, Any]) -> None:
    names = ("rewards", "old_logp", "sum_p2", "groups", "mask", "weights")
    *arrays, weights = given(kind, *(x[name] for name in names))
    for ours, theirs in ((weights, x["weights"]), (None, np.ones(x["mask"].shape))):
        want = plain.optimal_token_baseline(*(x[name] for name in names[:-1]), theirs, 1e-8)
        result = array(advantages.optimal_token_baseline(*arrays, weights=ours))
        np.testing.assert_allclose(result, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_min_form_and_pure(kind: str, x: dict[str, Any]) -> None:
    process, steps, groups, mask = given(kind, x["process"], x["steps"], x["groups"], x["mask"])
    want = plain.min_form(x["process"], x["steps"], 0.2)
    result = array(advantages.min_form(process, steps, temperature=0.2))
    np.testing.assert_allclose(result, want, **CLOSE)
    for length in (None, 20):
        options = (0.1, x["mask"].shape[1] if length is None else length)
        want = plain.pure(x["process"], x["steps"], x["groups"], x["mask"], *options)
        result = array(advantages.pure(process, steps, groups, mask, max_length=length))
        np.testing.assert_allclose(result, want, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cold_min_form_adds_up_to_the_smallest(kind: str) -> None:
    rewards, steps = np.array([[0.5, 9.0, -0.25, 0.75]]), np.array([[True, False, True, True]])
    result = array(advantages.min_form(*given(kind, rewards, steps), temperature=1e-3))
    np.testing.assert_allclose(result, [[0.0, 0.0, -0.25, 0.0]], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_padding_and_holes_change_nothing(kind: str, x: dict[str, Any]) -> None:
    """Two columns outside the mask, one in the middle and one at the end."""

    def wider(values: Any, fill: Any) -> Any:
        middle = values.shape[1] // 2
        return np.concatenate(
            [values[:, :middle], np.full_like(values[:, :1], fill), values[:, middle:],
             np.full_like(values[:, :1], fill)], axis=1,
        )  # fmt: skip

    def run(change: Any) -> list[Any]:
        mask, steps = (change(x[k], False) for k in ("mask", "steps"))
        names = ("rewards", "values", "old_logp", "sum_p2", "process")
        floats = (change(x[k], np.nan) for k in names)
        m, s, g, r, v, lp, p2, process = given(kind, mask, steps, x["groups"], *floats)
        results = [
            advantages.returns(r, m, gamma=0.9),
            advantages.gae(r, v, m, gamma=0.9).advantages,
            advantages.whiten(r, m),
            advantages.optimal_token_baseline(r, lp, p2, g, m),
            advantages.pure(process, s, g, m, max_length=30),
        ]
        return [array(result)[mask] for result in results]

    for narrow, wide in zip(run(lambda values, fill: values), run(wider), strict=True):
        np.testing.assert_allclose(wide, narrow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(x=token_batch())
def test_groups_in_any_order_and_on_any_split(kind: str, x: dict[str, Any]) -> None:
    names = ("mask", "steps", "groups", "rewards", "values", "old_logp", "sum_p2", "process")

    def run(rows: Any) -> list[Any]:
        m, s, g, r, v, lp, p2, process = given(kind, *(x[name][rows] for name in names))
        results = [
            advantages.returns(r, m, gamma=0.9),
            advantages.gae(r, v, m, gamma=0.9).advantages,
            advantages.optimal_token_baseline(r, lp, p2, g, m),
            advantages.min_form(process, s),
            advantages.pure(process, s, g, m),
        ]
        return [array(result) for result in results]

    whole = run(slice(None))
    splits = [np.flatnonzero(x["groups"] == g) for g in np.unique(x["groups"])]
    for rows in (*splits, np.arange(len(x["mask"]))[::-1]):
        for part, all_of_it in zip(run(rows), whole, strict=True):
            np.testing.assert_allclose(part, all_of_it[rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_length_adaptive_lambda(kind: str) -> None:
    lengths = given(kind, np.array([1, 20, 40, 4000]))[0]
    result = array(advantages.length_adaptive_lambda(lengths))
    np.testing.assert_allclose(result, [0.0, 0.0, 0.5, 1 - 1 / 200], atol=1e-15)
    result = array(advantages.length_adaptive_lambda(lengths, alpha=1.0))
    np.testing.assert_allclose(result, [0.0, 0.95, 0.975, 1 - 1 / 4000])


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_without_others_keeps_its_return(kind: str) -> None:
    ones = np.ones((2, 3))
    mask = np.array([[True, True, True], [True, False, False]])
    r, lp, p2, g, m = given(kind, ones, -ones, ones / 2, np.zeros(2, np.int64), mask)
    result = array(advantages.optimal_token_baseline(r, lp, p2, g, m))
    # returns 3 and 1, of equal weight at the first place
    np.testing.assert_allclose(result, [[1.0, 2.0, 1.0], [-1.0, 0.0, 0.0]], atol=1e-7)
