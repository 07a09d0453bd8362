"""The covariance report against NumPy, the entropy law against the oracle and the textbook."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from logitless import reference
from logitless.entropy.covariance import QUANTILES, covariance
from logitless.entropy.law import fit_entropy_law, student_t
from tests.support.losses.loss_specs import make_batch


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_covariance_against_numpy(dtype: Any) -> None:
    batch = make_batch(dtype=dtype)
    report = covariance(batch.logp, batch.advantages, batch.mask)
    lp, a = (x[batch.mask].astype(np.float64) for x in (batch.logp, batch.advantages))
    cov, mean_a, mean_lp = reference.covariance(batch.logp, batch.advantages, batch.mask)
    cov = cov[batch.mask]
    assert report.mean == pytest.approx(np.cov(a, lp, bias=True)[0, 1], rel=1e-12)
    assert report.correlation == pytest.approx(np.corrcoef(a, lp)[0, 1], rel=1e-12)
    assert (report.mean_advantage, report.mean_logp, report.count) == (mean_a, mean_lp, a.size)
    assert report.above_one == np.mean(cov > 1) > 0
    expected = np.quantile(cov, QUANTILES, method="inverted_cdf")
    assert list(report.quantiles.values()) == expected.tolist()


def test_covariance_takes_advantages_per_sequence_and_tensors() -> None:
    torch = pytest.importorskip("torch")
    batch = make_batch(dtype=np.float32)
    per_sequence = np.nan_to_num(np.nanmax(batch.advantages, axis=1, initial=-9.0), nan=0.0)
    expected = covariance(batch.logp, batch.advantages, batch.mask)
    assert covariance(batch.logp, per_sequence.astype(np.float32), batch.mask) == expected
    tensors = (torch.from_numpy(x) for x in (batch.logp, batch.advantages, batch.mask))
    assert covariance(*tensors) == expected


def test_covariance_without_spread_or_tokens() -> None:
    x = np.array([-1.0, -2.0])
    flat = covariance(x, np.ones(2), np.ones(2, bool))
    assert (flat.mean, flat.correlation, flat.count) == (0.0, 0.0, 2)
    empty = covariance(x * np.nan, x, np.zeros(2, bool))
    assert (empty.mean, empty.count, empty.quantiles) == (0.0, 0, {})


def test_covariance_refuses_gradients() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="logp is data"):
        covariance(torch.zeros(2, requires_grad=True), torch.zeros(2), torch.ones(2).bool())


# ---- the law


def test_law_against_the_oracle() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 4, 17, 60):
        h = rng.uniform(0.1, 1.5, size=n)
        r = 1.1 - 0.2 * np.exp(h) + 0.05 * rng.normal(size=n)
        law, expected = fit_entropy_law(h, r), reference.fit_entropy_law(h, r)
        for name in ("a", "b", "ceiling", "r2", "interval"):
            assert getattr(law, name) == pytest.approx(expected[name], rel=1e-8), name
        assert law.predict(0.0) == pytest.approx(law.ceiling, rel=1e-12)
        slope, intercept = np.polyfit(np.exp(h), r, 1)
        np.testing.assert_allclose(law.predict(h), intercept + slope * np.exp(h), rtol=1e-9)


def test_an_exact_law_is_found_exactly() -> None:
    h = [0.2, 0.6, 1.0, 1.4]
    law = fit_entropy_law(h, [1.3 - 0.25 * math.exp(x) for x in h])
    assert law.a == pytest.approx(0.25) and law.b == pytest.approx(1.3)
    assert law.ceiling == pytest.approx(1.05) and law.r2 == pytest.approx(1.0)
    assert law.interval == pytest.approx((1.05, 1.05), abs=1e-12)


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    """2000 noisy experiments: the share is binomial with a standard deviation of 0.005."""
    rng = np.random.default_rng(1)
    h = rng.uniform(0.2, 1.2, size=12)
    truth = 1.0 - 0.2 * np.exp(h)
    laws = [fit_entropy_law(h, truth + 0.1 * rng.normal(size=12)) for _ in range(2000)]
    share = np.mean([law.interval[0] <= 0.8 <= law.interval[1] for law in laws])
    assert abs(share - 0.95) < 0.02


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 10, 31, 58, 1000])
def test_student_t_against_the_integrated_density(dof: int) -> None:
    assert student_t(0.95, dof) == pytest.approx(reference.student_t_975(dof), rel=1e-9)


def test_a_constant_reward_is_a_flat_law() -> None:
    law = fit_entropy_law([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert (law.a, law.ceiling, law.r2) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    "entropy, reward, words",
    [
        ([0.1, 0.2], [1.0, 2.0], ["one length >= 3", "2 and 2"]),
        ([0.1, 0.2, 0.3], [1.0, 2.0], ["one length", "3 and 2"]),
        ([0.1, math.nan, 0.3], [1.0, 2.0, 3.0], ["entropy", "finite", "nan"]),
        ([0.1, 0.2, 0.3], [1.0, math.inf, 3.0], ["reward", "finite", "inf"]),
        ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], ["entropy", "more than one value", "0.5"]),
        ([[0.5, 0.5]], [1.0, 2.0, 3.0], ["entropy", "vector"]),
    ],
)
def test_no_law_without_points(entropy: Any, reward: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        fit_entropy_law(entropy, reward)
    assert all(word in str(caught.value) for word in words), str(caught.value)
