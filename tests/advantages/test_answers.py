"""Advantages of whole answers against plain loops, in padded and ragged groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from logitless import advantages, reference
from tests.advantages.draws import KINDS, PER_GROUP, array, by_group, few, given, ragged

CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
plain = reference.advantages


def expected(oracle: Any, rewards: Any, groups: Any, mask: Any) -> Any:
    out = np.zeros(rewards.shape)
    for places in by_group(rewards, groups, mask):
        out[places] = oracle(rewards[places].tolist())
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PER_GROUP)
@few
@drawn(data=st.data())
def test_ragged_groups_against_plain_loops(name: str, kind: str, data: Any) -> None:
    function, oracle = PER_GROUP[name]
    rewards, groups, mask = data.draw(ragged(binary=name.startswith("pass_at_k")))
    result = array(function(*given(kind, rewards, groups, mask)))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected(oracle, rewards, groups, mask), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PER_GROUP)
def test_padded_groups_are_ragged_groups(name: str, kind: str) -> None:
    function, oracle = PER_GROUP[name]
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 2, (5, 4)).astype(np.float64)
    mask = rng.random((5, 4)) > 0.2
    ids = np.repeat(np.arange(5), 4)
    result = array(function(*given(kind, rewards, None, mask)))
    assert result.shape == (5, 4)
    flat = array(function(*given(kind, rewards.ravel(), ids, mask.ravel())))
    np.testing.assert_array_equal(result.ravel(), flat)
    np.testing.assert_allclose(flat, expected(oracle, rewards.ravel(), ids, mask.ravel()), **CLOSE)
    # what lies outside the mask is not read
    spoilt = np.where(mask, rewards, np.nan)
    np.testing.assert_array_equal(array(function(*given(kind, spoilt, None, mask))), result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PER_GROUP)
@few
@drawn(data=st.data())
def test_answers_and_groups_in_any_order_and_on_any_split(name: str, kind: str, data: Any) -> None:
    function, _ = PER_GROUP[name]
    rewards, groups, mask = data.draw(ragged(binary=name.startswith("pass_at_k")))
    whole = array(function(*given(kind, rewards, groups, mask)))
    order = np.array(data.draw(st.permutations(range(rewards.size))))
    moved = array(function(*given(kind, rewards[order], groups[order] * 2 + 1, mask[order])))
    np.testing.assert_allclose(moved, whole[order], **CLOSE)
    for g in np.unique(groups):
        part = groups == g
        alone = array(function(*given(kind, rewards[part], groups[part], mask[part])))
        np.testing.assert_allclose(alone, whole[part], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "max_rl", "pass_at_k.2"])
@few
@drawn(data=st.data())
def test_a_group_sums_to_zero(name: str, kind: str, data: Any) -> None:
    rewards, groups, mask = data.draw(ragged(binary=name.startswith("pass_at_k")))
    result = array(PER_GROUP[name][0](*given(kind, rewards, groups, mask)))
    for places in by_group(rewards, groups, mask):
        # grpo divides by as little as 1e-6
        assert abs(result[places].sum()) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PER_GROUP)
def test_equal_rewards_and_single_answers_teach_nothing(name: str, kind: str) -> None:
    function, _ = PER_GROUP[name]
    values = (0.0, 1.0) if name.startswith("pass_at_k") else (0.0, 0.1, 1e8 + 0.3)
    for value in values:
        for dtype in (np.float32, np.float64):
            equal = np.full((3, 7), value, dtype)
            assert not array(function(*given(kind, equal))).any()
            assert not array(function(*given(kind, equal[:, :1]))).any()
    nobody = given(kind, np.full((2, 3), np.nan), None, np.zeros((2, 3), bool))
    assert not array(function(*nobody)).any()
    assert array(function(*given(kind, np.zeros((0, 4))))).shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(batch=ragged(), seed=st.integers(0, 99))
def test_opo(kind: str, batch: Any, seed: int) -> None:
    rewards, groups, mask = batch
    lengths = np.random.default_rng(seed).integers(0, 4, rewards.size)
    result = array(advantages.opo(*given(kind, rewards, lengths, groups, mask)))
    for places in by_group(rewards, groups, mask):
        want = plain.opo(rewards[places].tolist(), lengths[places].tolist())
        np.testing.assert_allclose(result[places], want, **CLOSE)
        # the mean over tokens is 0
        assert abs((result * lengths)[places].sum()) < 1e-12
    assert not result[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
@few
@drawn(batch=ragged(), f_norm=st.sampled_from([1.0, 0.5]))
def test_gpg(kind: str, batch: Any, f_norm: float) -> None:
    rewards, groups, mask = batch
    result = array(advantages.gpg(*given(kind, rewards, groups, mask), f_norm=f_norm))
    found = by_group(rewards, groups, mask)
    want = plain.gpg([rewards[places].tolist() for places in found], f_norm)
    for places, one in zip(found, want, strict=True):
        np.testing.assert_allclose(result[places], one, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_remax(kind: str) -> None:
    rewards, greedy = np.array([[1.0, 0.0], [0.5, np.nan]]), np.array([1.0, 0.25])
    mask = np.array([[True, True], [True, False]])
    a, b, m = given(kind, rewards, greedy, mask)
    want = [[0.0, -1.0], [0.25, 0.0]]
    np.testing.assert_array_equal(array(advantages.remax(a, b, m)), want)
    wide = given(kind, np.repeat(greedy, 2).reshape(2, 2))[0]
    np.testing.assert_array_equal(array(advantages.remax(a, wide, m)), want)
    one = array(advantages.remax(*given(kind, rewards[:, 0], greedy)))
    np.testing.assert_array_equal(one, [0.0, 0.25])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_lengths", [False, True])
@few
@drawn(batch=ragged(), seed=st.integers(0, 99))
def test_whitened_over_the_batch(kind: str, with_lengths: bool, batch: Any, seed: int) -> None:
    rewards, groups, mask = batch
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rewards.size)
    weights = np.where(mask, lengths if with_lengths else 1, 0)
    r, n, g, m = given(kind, rewards, lengths if with_lengths else None, groups, mask)
    centered = expected(plain.dr_grpo, rewards, groups, mask)
    want = np.where(mask, plain.whiten(centered, weights), 0.0)
    result = array(advantages.reinforce_plus_plus_baseline(r, n, g, m))
    # whiten divides by as little as 1e-4
    np.testing.assert_allclose(result, want, rtol=1e-9, atol=1e-9)

    other = np.where(mask, rng.integers(0, 2, rewards.size), np.nan)
    both = sum(
        w * expected(plain.grpo, x, groups, mask) for w, x in ((0.5, rewards), (-2.0, other))
    )
    want = np.where(mask, plain.whiten(both, weights), 0.0)
    kinds = given(kind, np.stack([rewards, other]))[0]
    result = array(advantages.gdpo(kinds, (0.5, -2.0), n, g, m))
    np.testing.assert_allclose(result, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: str) -> None:
    rewards = np.array([[1.0, 0.0, 0.25]])
    for dtype, out in ((np.float16, np.float32), (np.float32, np.float32), (np.float64,) * 2):
        result = array(advantages.grpo(*given(kind, rewards.astype(dtype))))
        assert result.dtype == out
        np.testing.assert_allclose(result, [plain.grpo(rewards[0])], rtol=1e-6)


def test_bfloat16_and_strides() -> None:
    torch = pytest.importorskip("torch")
    rewards = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.5, 0.0]], dtype=torch.bfloat16)
    result = advantages.dr_grpo(rewards.t())
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), [[0.5, -0.5, 0.0], [0.0, 0.5, -0.5]], atol=1e-7)


def test_best_of_two_equals_the_estimate_of_all_pairs() -> None:
    """pass_at_k of 8 answers, 3 of them right, by the paper's binomials."""
    rewards = np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    none = math.comb(5, 4) / math.comb(8, 4)
    std = math.sqrt(none * (1 - none)) + 1e-6
    right, wrong = none / std, (none - math.comb(4, 3) / math.comb(7, 3)) / std
    np.testing.assert_allclose(advantages.pass_at_k(rewards, 4)[0], [right] * 3 + [wrong] * 5)
