"""Checks of the emulated token kernels against plain Python, without torch: see __init__.py."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.simt import problem
from tests.simt.problem import NO_ERROR, Array

# Fewer than a warp, one more than a block, and some of a second block of the largest.
SIZES = (0, 1, 31, 257, 1025, 4096 + 33)
BAD = 7


def kernels() -> Any:
    return problem.module.CudaTokens(0)


def flag() -> Array:
    return np.full(1, NO_ERROR)


def exact_mean(values: Array) -> float:
    return float(sum(map(Fraction, values.tolist()), Fraction(0)) / max(len(values), 1))


def token_sums() -> None:
    """Means are exact and rounded once, whatever the magnitudes; a bad value names its token."""
    rng = np.random.default_rng(1)
    for n in SIZES:
        for spread in (0, 60, 500):
            first = rng.normal(size=n) * 2.0 ** rng.integers(-spread, spread + 1, n)
            second = -first[::-1].copy()
            mask, error = rng.random(n) < 0.8, flag()
            first[~mask] = np.nan
            words, means = np.zeros(problem.module.CUDA_SUM_WORDS, np.int64), np.full(2, np.nan)
            second[~mask] = np.inf
            second[mask & ~np.isfinite(second)] = 0.0
            kernels().value_sums(first, second, mask, words, error)
            count = int(words[-1])
            kernels().sum_means(words, means)
            assert count == mask.sum()
            assert means.tolist() == [exact_mean(first[mask]), exact_mean(second[mask])], spread
            assert error[0] == NO_ERROR
    mask[:] = True
    second[:] = 1.0
    first[:] = 1.0
    first[[77, 4000]] = np.nan
    kernels().value_sums(first, second, mask, words, error)
    assert error[0] == 77 * 8 + BAD


def token_selection() -> None:
    """The k largest of keys with ties, as a sort has them; and the k-th value."""
    rng = np.random.default_rng(2)
    for n in SIZES:
        values, which = rng.integers(-9, 9, n) / 4.0, rng.random(n) < 0.9
        ids = rng.permutation(3 * n)[:n]
        scores, out_ids = np.zeros(n, np.int64), np.zeros(n, np.int64)
        kernels().ordered_scores(values, which, ids, scores, out_ids)
        assert (out_ids == np.where(which, ids, -1)).all()
        running = int(which.sum())
        order = sorted(np.flatnonzero(which), key=lambda i: (-values[i], ids[i]))
        for k in sorted({0, 1, running // 3, running - 1, running, running + 3} - {-1}):
            bins, states = np.zeros((16, 256), np.int64), np.zeros((17, 4), np.int64)
            taken, error = np.zeros(n, np.bool_), flag()
            search = (scores, out_ids, np.array([k]), bins, states)
            kernels().radix_levels(*search, 0, 16, False)
            kernels().radix_take(*search, taken, error)
            expected = np.zeros(n, np.bool_)
            expected[order[: max(k, 0)]] = True
            assert k == 0 or (taken == expected).all(), (n, k)
            assert error[0] == NO_ERROR
            if 1 <= k <= running:
                bins[:] = 0
                kernels().radix_levels(*search, 0, 9, True)
                (bits,) = states[8, :1].view(np.uint64).tolist()
                bits = bits ^ (1 << 63) if bits >> 63 else ~bits & (2**64 - 1)
                assert np.array([bits], np.uint64).view(np.float64)[0] == values[order[k - 1]]
        chosen = np.sort(ids[rng.random(n) < 0.3])
        member = np.zeros(n, np.bool_)
        kernels().members(ids, chosen, member)
        assert (member == np.isin(ids, chosen)).all()
    # one id of two tokens, of which the limit takes one
    ids[:] = np.arange(n)
    ids[40] = ids[30]
    scores[:] = 5
    bins[:], error = 0, flag()
    twice = (scores, ids, 31, bins, states)
    kernels().radix_levels(*twice, 0, 16, False)
    kernels().radix_take(*twice, taken, error)
    assert error[0] == 30 * 8 + BAD


def token_ids() -> None:
    """Ids that are another's, whatever comes first; and those that are some in rising order, from
    one run, several, and as many as are merged twice."""
    rng = np.random.default_rng(6)
    for n in (*SIZES, 16 * 4096 + 70):
        ids, mask = rng.permutation(3 * n)[:n] * 8, rng.random(n) < 0.9
        ids[~mask] = 0
        table, error = np.zeros(2 * n + 1, np.int32), flag()
        kernels().unique_ids(ids, mask, table, error)
        assert error[0] == NO_ERROR
        some = np.where(rng.random(n) < 9000 / max(n, 9000), rng.permutation(3 * n)[:n], -1)
        out, room = np.full(n, -9), np.full(2 * n, -9)
        kernels().sort_ids(some, np.zeros(1, np.int64), room, out)
        assert (out == np.sort(some)).all(), n
    places = np.flatnonzero(mask)
    for same in ([3000, 40, 500], [7, 2000]):
        twice = ids.copy()
        twice[places[same]] = ids[places[same[0]]]
        table, error = np.zeros(2 * n, np.int32), flag()
        kernels().unique_ids(twice, mask, table, error)
        assert error[0] == places[sorted(same)[1]] * 8 + BAD
    good, error = np.ones(n, np.bool_), flag()
    good[[40, 9]] = False
    kernels().flag_tokens(good, np.arange(n)[::-1].copy(), error)
    assert error[0] == (n - 41) * 8 + BAD


def token_far() -> None:
    """Ids among more than 2^31 sorted ones, of which nearly all are memory that is not there."""
    size = 2**31 + 40
    memory = mmap.mmap(-1, 8 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | problem.NOT_RESERVED)
    ordered = np.frombuffer(memory, np.int64)
    ordered[-40:] = 2 * np.arange(1, 41)
    ids, out = np.array([2, 3, 80, 81, 40]), np.zeros(5, np.bool_)
    kernels().members(ids, ordered, out)
    assert out.tolist() == [True, False, True, False, True]


def token_report() -> None:
    """Sums of a covariance, and its quantiles as a sort has them, ties and all."""
    rng = np.random.default_rng(7)
    shares = (0.5, 0.8, 0.98, 0.998, 0.9998)
    for n in SIZES:
        logp, a = rng.integers(-40, 1, n) / 8.0, rng.integers(-2, 3, n) / 2.0
        mask, error = rng.random(n) < 0.7, flag()
        logp[~mask] = np.nan
        count, means = mask.sum(), (np.array([0.25]), -2.5)
        words = np.zeros(problem.module.COVARIANCE_WORDS, np.int64)
        scores, out = np.full(n, 9), np.full(3, np.nan)
        kernels().covariance_sums(logp, a, mask, *means, 1.0, scores, words, error)
        kernels().covariance_means(words, out)
        x, y = (a - 0.25)[mask], (logp + 2.5)[mask]
        mean = exact_mean(x * y)
        spread = math.sqrt(exact_mean(x * x)) * math.sqrt(exact_mean(y * y))
        above = (x * y > 1.0).sum() / max(count, 1)
        assert out.tolist() == [mean, mean / spread if spread else 0.0, above]
        assert (scores[~mask] == 0).all() and error[0] == NO_ERROR
        bins, states = np.zeros((8, 5, 256), np.int64), np.zeros((8, 5, 4), np.int64)
        values = np.full(5, 7.0)
        kernels().quantile_levels(scores, np.array([count]), shares, bins, states, values, 0, 9)
        if not count:
            assert np.isnan(values).all()
            continue
        ordered = np.sort(x * y)
        assert values.tolist() == [ordered[math.ceil(q * count) - 1] for q in shares]


def token_numbers() -> None:
    """Numbers of the host and of arrays side by side; shares of a count; a loss with metrics."""
    out = np.full(3, np.nan)
    kernels().collect_numbers((0.5, np.array([7]), np.array([-0.1])), out)
    assert out.tolist() == [0.5, 7.0, -0.1]
    for count in (0, 1, 7, 10**6):
        inverse, part = np.full(1, np.nan), np.full(1, -1)
        kernels().count_shares(np.array([count]), 0.3, inverse, part)
        assert inverse[0] == 1 / max(count, 1) and part[0] == max(int(0.3 * count), 1)
    sums, table = np.array([3e40, 2.0, 9.0, 4.0]), [(2, True), (1, False), (0, False)]
    for dtype in (np.float32, np.float64):
        for total, divisor in ((None, 4), (np.array([8]), 8), (0, 1)):
            loss, metrics = np.zeros(1, dtype), np.zeros(3, np.float32)
            kernels().loss_outputs(sums, 3, total, table, loss, metrics)
            assert loss[0] == (np.inf if dtype == np.float32 else 3e40)
            assert metrics.tolist() == [9.0 / divisor, 2.0, np.inf]


def token_scores() -> None:
    """Candidates by covariance, inside the band and not clipped."""
    rng = np.random.default_rng(3)
    for n in SIZES:
        logp, a, old = (rng.normal(size=n) for _ in range(3))
        mask, ids = rng.random(n) < 0.7, np.arange(n) + 5
        band = {"mean_advantage": np.array([0.1]), "mean_logp": -0.2, "low": -0.5, "high": 1.5,
                "log_low": -0.3, "log_high": 0.4}  # fmt: skip
        scores, out_ids, error = np.zeros(n, np.int64), np.zeros(n, np.int64), flag()
        kernels().covariance_scores(logp, a, mask, old, ids, band, scores, out_ids, error)
        cov = (a - 0.1) * (logp + 0.2)
        u = logp - old
        inside = mask & (cov > -0.5) & (cov < 1.5)
        inside &= ~(((a > 0) & (u > 0.4)) | ((a < 0) & (u < -0.3)))
        assert (out_ids == np.where(inside, ids, -1)).all()
        order = scores.view(np.uint64)[inside].argsort(kind="stable")
        assert (order == cov[inside].argsort(kind="stable")).all()
        keys = np.full(n, 1, np.int64)
        kernels().random_scores(out_ids, 3, 4, keys)
        assert (keys[~inside] == 0).all() and len(set(keys[inside])) == inside.sum()


def token_sequences() -> None:
    """Sums and maxima of sequences of any length; exp to an ulp."""
    rng = np.random.default_rng(4)
    ends = np.cumsum([0, 1, 40, 600, 0, 255])
    n = int(ends[-1])
    values, mask = rng.normal(size=n), rng.random(n) < 0.7
    values[~mask] = np.nan
    for largest in (False, True):
        out = np.full(ends.size, np.nan)
        kernels().fold_sequences(ends, mask, values, largest, out)
        start = 0
        for end, found in zip(ends, out, strict=True):
            some = values[start:end][mask[start:end]]
            plain = some.max(initial=0.0) if largest else math.fsum(some)
            assert abs(found - plain) <= 1e-13 * max(abs(some).sum(), 1), (end, largest)
            start = end
    for size in SIZES:
        x = rng.normal(0, 200, size)
        out = np.full(size, np.nan)
        kernels().exp(x, out)
        np.testing.assert_array_max_ulp(out, np.exp(x), 2)


def loss_params() -> Any:
    m = problem.module
    low, high = 0.8, 1.25
    return m.LossParams(
        surrogate=m.Surrogate.clip, constants=(), ratio_low=low, ratio_high=high,
        log_low=math.log(low), log_high=math.log(high), ratio_dual=math.inf, log_dual=math.inf,
        positive=1.0, negative=1.0, control=m.Control.drop_selected,
        penalty_estimator=m.KlEstimator.none, penalty_straight_through=False,
        kl_estimator=m.KlEstimator.k2, kl_straight_through=False, kl_weight=m.KlWeight.none,
        entropy_target=0.0,
    )  # fmt: skip


def token_loss() -> None:
    """The clip of PPO with KL and an entropy bonus, and its sums over several blocks."""
    rng = np.random.default_rng(5)
    for n in SIZES:
        for real in (np.dtype(np.float32), np.dtype(np.float64)):
            logp, old, a, h, ref = (rng.normal(0, 0.3, n).astype(real) for _ in range(5))
            mask, selected = rng.random(n) < 0.8, rng.random(n) < 0.2
            for array in (logp, old, a, h, ref):
                array[~mask] = np.nan
            out = {"g_logp": np.full(n, np.nan, real), "g_entropy": np.full(n, np.nan, real)}
            sums, error = np.full(13, np.nan), flag()
            blocks = np.full(-(-n // problem.module.LOSS_TOKENS) * 13, np.nan)
            kernels().token_loss(
                logp=logp, old_logp=old, advantages=a, weights=None, entropy=h, kl_logp=ref,
                selected=selected, mean_advantage=0.0, mean_logp=np.zeros(1), grad_scale=2.0,
                entropy_coefficient=0.1, kl_coefficient=0.5, penalty_coefficient=0.0,
                params=loss_params(), sums=sums, mask=mask, weight=np.full(1, 0.25),
                penalty_logp=None, log_ratio=None, factor=None, precomputed_loss=None,
                precomputed_slope=None, g_policy=None, log_low=None,
                log_high=np.full(1, math.log(1.1)), blocks=blocks, flag=error, **out,
            )  # fmt: skip
            logp, old, a, h, ref = (np.asarray(x, np.float64) for x in (logp, old, a, h, ref))
            u, x = logp - old, logp - ref
            cut = ((a > 0) & (u > math.log(1.1))) | ((a < 0) & (u < math.log(0.8)))
            ratio = np.where(cut, np.where(a > 0, 1.1, 0.8), np.exp(u))
            policy = np.where(selected, 0.0, -a * ratio)
            slope = np.where(cut | selected, 0.0, policy)
            loss = policy + 0.5 * 0.5 * x * x - 0.1 * h
            close: dict[str, Any] = {"rtol": 1e-6 if real == np.float32 else 1e-12, "atol": 1e-15}
            g = np.where(mask, 0.5 * (slope + 0.5 * x), 0.0)
            np.testing.assert_allclose(out["g_logp"], g, **close)
            np.testing.assert_allclose(out["g_entropy"], np.where(mask, -0.05, 0.0), **close)
            np.testing.assert_allclose(sums[0], 0.5 * loss[mask].sum(), rtol=1e-10, atol=1e-12)
            assert sums[[3, 5, 9]].tolist() == [x[mask].sum() for x in (cut, selected, mask)]
            assert error[0] == NO_ERROR


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        token_sums, token_selection, token_scores, token_sequences, token_loss, token_ids,
        token_far, token_report, token_numbers,
    )
}  # fmt: skip
