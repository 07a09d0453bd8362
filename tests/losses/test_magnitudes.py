"""Means, deviations, covariances and what is selected by them, of numbers of any size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logitless import _core, reference
from logitless.entropy.covariance import covariance
from logitless.inputs.tokens import Int64s
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.means import batch_means
from logitless.loss.evaluate.selection import select
from logitless.reference.selection import deviation
from tests.support.losses.loss_specs import SPECS

N = 40
SELECTING = ("many_kl_cov", "many_clip_cov", "many_clip_cov_ppo", "clip_cov_sequence",
             "many_clip_b", "many_clip_v", "many_top_entropy")  # fmt: skip


class Ranks:
    """An all-reduce over threads."""

    def __init__(self, number: int) -> None:
        self.barrier, self.values = threading.Barrier(number), [np.zeros(0, np.int64)] * number

    def reduce(self, rank: int) -> Callable[[Int64s], Int64s]:
        def reduce(values: Int64s) -> Int64s:
            self.values[rank] = values.copy()
            self.barrier.wait()
            total = np.sum(self.values, axis=0)
            self.barrier.wait()
            return total

        return reduce


def numbers(rng: np.random.Generator, exponent: int, spread: float, offset: bool) -> np.ndarray:
    """Around 10^exponent, over `spread` decades; or all near it."""
    if offset:
        return (1 + 1e-12 * rng.normal(size=N)) * 10.0**exponent
    return rng.normal(size=N) * 10.0 ** (exponent + rng.uniform(-spread, 0, N))


def selected(name: str, columns: dict[str, np.ndarray], part: slice, reduce: Any) -> list[int]:
    tokens = make_tokens(**{k: x[:, part] for k, x in columns.items()})
    means = batch_means(tokens, reduce)
    return select(tokens, SPECS[name], means, seed=1, step=2, reduce=reduce).tolist()


def check_selection(name: str, columns: dict[str, np.ndarray]) -> None:
    """Of one rank and of two: the oracle's."""
    log_ratio = None
    if name == "clip_cov_sequence":
        ratio = (columns["logp"] - columns["old_logp"])[columns["mask"]]
        log_ratio = np.full((1, N), ratio.sum() / max(ratio.size, 1))
    given = dict(columns)
    logp, advantages, mask = (given.pop(name) for name in ("logp", "advantages", "mask"))
    expected = reference.select(
        logp, advantages, mask, SPECS[name], **given, seed=1, step=2, log_ratio=log_ratio
    )
    assert selected(name, columns, slice(None), lambda values: values) == expected
    if name == "clip_cov_sequence":
        return
    ranks, found = Ranks(2), [[], []]

    def run(rank: int) -> None:
        part = slice(0, N // 3) if rank == 0 else slice(N // 3, N)
        found[rank] = selected(name, columns, part, ranks.reduce(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found[0] + found[1]) == expected


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(SELECTING),
    of_logp=st.integers(-300, 300), of_a=st.integers(-300, 300), of_rest=st.integers(-300, 300),
    spread=st.sampled_from([0.0, 3.0, 30.0]), offset=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@example("many_clip_b", 0, 0, -10, 0.0, False, 0)
@example("many_kl_cov", -300, -300, 0, 0.0, False, 0)
@example("many_kl_cov", 300, 300, 0, 0.0, False, 0)
@example("many_clip_v", 0, 0, -300, 0.0, True, 0)
def test_selection_of_numbers_of_any_size_is_the_oracles(
    name: str, of_logp: int, of_a: int, of_rest: int, spread: float, offset: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # a surprise p (entropy + logp) that is the entropy, to the bit
    logp = np.zeros(N) if name == "many_clip_b" else -np.abs(numbers(rng, of_logp, spread, offset))
    values = {
        "logp": logp,
        "advantages": numbers(rng, of_a, spread, False),
        "mask": rng.random(N) < 0.8,
        "old_logp": logp + 0.3 * rng.normal(size=N),
        "entropy": numbers(rng, of_rest, spread, offset),
        "entropy_change": numbers(rng, of_rest, spread, offset),
        "token_ids": rng.permutation(N).astype(np.int64),
    }
    check_selection(name, {name: x[None] for name, x in values.items()})


@pytest.mark.parametrize("large", [False, True])
def test_ranks_of_different_sizes_agree(large: bool) -> None:
    """One rank's numbers are far smaller than the other's: both take the batch's exponent."""
    rng = np.random.default_rng(0)
    exponent = np.where(np.arange(N) < N // 3, -270, 270 if large else -230)
    for name in ("many_kl_cov", "many_clip_v"):
        values = {
            "logp": -rng.random(N) * 10.0**exponent,
            "advantages": rng.normal(size=N) * 10.0**exponent,
            "mask": np.ones(N, bool),
            "entropy_change": rng.normal(size=N) * 10.0**exponent,
            "token_ids": np.arange(N),
        }
        check_selection(name, {k: x[None] for k, x in values.items()})


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    seed=st.integers(0, 9),
)
@example([1e308, -1e308, 5e-324], 0)
@example([-1.7976931348623157e308] * 5, 0)
def test_means_of_any_floats_round_once(values: list[float], seed: int) -> None:
    x = np.array(values)
    shuffled = np.random.default_rng(seed).permutation(x)
    means = batch_means(make_tokens(shuffled, x, np.ones(x.size, bool)))
    assert means.logp == means.advantage == reference.exact_mean(x)


@pytest.mark.parametrize("exponents", [(-320, 308), (-20, 0), (31, 40), (-45, 38)])
def test_long_sums_are_exact(exponents: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, a rest, masked NaN, all instruction sets and numbers of threads."""
    rng = np.random.default_rng(3)
    dtype: Any = np.float32 if exponents == (-45, 38) else np.float64
    n = 10_007
    with np.errstate(over="ignore", under="ignore"):
        x = (rng.normal(size=n) * 10.0 ** rng.uniform(*exponents, n)).astype(dtype)
    x[~np.isfinite(x)] = 1
    mask = rng.random(n) < 0.8
    y = np.where(mask, -x, np.nan).astype(dtype)
    seen = set()
    for isa in _core.runtime.build_info()["isas"]:
        monkeypatch.setenv("LOGITLESS_ISA", isa)
        for threads in (1, 3):
            sums = np.zeros(_core.tokens.SUM_WORDS, np.int64)
            assert _core.tokens.value_sums(y, np.where(mask, x, 0), mask, sums, threads) == -1
            seen.add(sums.tobytes())
    assert len(seen) == 1
    means = batch_means(make_tokens(y, x, mask))
    assert means.advantage == -means.logp == reference.exact_mean(x[mask])


@given(st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=20), st.integers(-300, 300))
def test_the_oracles_deviation_scales(values: list[float], shift: int) -> None:
    """Where nothing is lost by scaling it is NumPy's, and a power of two goes through it."""
    x = np.array(values)
    spread = deviation(x)
    # NumPy's squares vanish where the numbers are small
    if np.abs(x).max() > 1e-100:
        np.testing.assert_allclose(spread, x.std(), rtol=1e-9, atol=1e-12 * np.abs(x).max())
    if np.abs(x[x != 0]).min(initial=1) > 1e-100:
        assert deviation(np.ldexp(x, shift)) == np.ldexp(spread, shift)


@pytest.mark.parametrize("shifts", [(-600, 500), (600, -500), (-700, -100), (300, 500)])
def test_covariance_scales(shifts: tuple[int, int]) -> None:
    """Powers of two go through every number of the report."""
    rng = np.random.default_rng(5)
    logp, a, mask = -rng.random(300), rng.normal(size=300), rng.random(300) < 0.8
    plain = covariance(logp, a, mask)
    scaled = covariance(np.ldexp(logp, shifts[0]), np.ldexp(a, shifts[1]), mask)
    total = sum(shifts)
    assert scaled.mean == np.ldexp(plain.mean, total) != 0
    assert scaled.correlation == plain.correlation
    assert scaled.quantiles == {q: np.ldexp(v, total) for q, v in plain.quantiles.items()}
    cov, *_ = reference.covariance(logp, a, mask)
    assert scaled.above_one == np.count_nonzero(cov[mask] > np.ldexp(1.0, -total)) / plain.count


def test_a_covariance_beyond_float64_is_refused() -> None:
    x = np.array([-1e200, -2e200, -4e200])
    with pytest.raises(ValueError, match="advantages and logp must have a covariance"):
        covariance(x, x, np.ones(3, bool))
