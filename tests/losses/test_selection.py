"""The parts of selection: Philox, exact means, ordered scores, radix select; stable bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless import _core, reference
from logitless.backends.token_kernels.protocol import Candidates
from logitless.backends.token_kernels.radix_select import kth_largest, score_values, take_largest
from logitless.inputs.tokens import Tokens
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.means import batch_means, one_rank
from logitless.loss.evaluate.selection import candidates, covariance_candidates, select
from logitless.loss.spec import KLCov, PolicyLossSpec
from logitless.loss.spec.presets import presets
from tests.support.losses.loss_outcomes import core_params
from tests.support.losses.loss_specs import SELECTING, chosen, make_batch


def tokens_of(logp: np.ndarray, advantages: np.ndarray, mask: np.ndarray | None = None) -> Tokens:
    mask = np.ones(logp.shape, bool) if mask is None else mask
    return make_tokens(logp, advantages, mask)


def scores_of(values: np.ndarray) -> np.ndarray:
    scores = np.empty(values.size, np.int64)
    _core.tokens.ordered_scores(values, scores)
    return scores


# ---- Philox


@pytest.mark.parametrize(
    "x, y, seed, words",
    [
        (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x85A308D3243F6A88,
            0x0370734413198A2E,
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(x: int, y: int, seed: int, words: tuple[int, ...]) -> None:
    """Random123's published vectors for philox4x32-10."""
    assert _core.tokens.philox(x, y, seed) == words


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1),
)
def test_random_scores_are_the_oracles_keys(seed: int, step: int, ids: list[int]) -> None:
    scores = np.empty(len(ids), np.int64)
    _core.tokens.random_scores(np.array(ids), seed, step, scores)
    expected = [reference.random_key(seed, step, i) for i in ids]
    assert scores.view(np.uint64).tolist() == expected


# ---- exact means


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), seed=st.integers(0, 9)
)
def test_means_round_once_in_any_order_and_split(values: list[float], seed: int) -> None:
    x = np.array(values, np.float32)
    shuffled = np.random.default_rng(seed).permutation(x)
    means = batch_means(tokens_of(shuffled, x[::-1].copy()))
    assert means.logp == means.advantage == reference.exact_mean(x)
    # two ranks: integer sums add up
    parts = np.array_split(shuffled, 2)
    sums = np.zeros((2, _core.tokens.SUM_WORDS), np.int64)
    for part, out in zip(parts, sums, strict=True):
        assert _core.tokens.value_sums(part, part, np.ones(part.size, bool), out) == -1
    split = batch_means(tokens_of(parts[0], parts[0]), lambda _: sums.sum(axis=0))
    assert split.logp == means.logp and split.tokens == x.size


def test_naive_float_means_do_depend_on_order() -> None:
    """Why the sums are integers: the float sum of the same numbers has several values."""
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1e3
    naive = {float(np.float32(sum(np.random.default_rng(i).permutation(x)))) for i in range(5)}
    exact = {
        batch_means(tokens_of(np.random.default_rng(i).permutation(x), x)).logp for i in range(5)
    }
    assert len(naive) > 1 and len(exact) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_means_refuse_what_has_no_sum(bad: float) -> None:
    x = np.zeros((2, 3))
    x[1, 1] = bad
    with pytest.raises(ValueError, match=r"advantages and logp must be finite .* at \[1, 1\]"):
        batch_means(tokens_of(np.zeros((2, 3)), x))


# ---- scores


def test_scores_are_in_the_order_of_the_numbers() -> None:
    values = np.array([-np.inf, -1e300, -2.0, -1.0, -5e-324, 0.0, 5e-324, 1.0, 2.0, 1e300, np.inf])
    scores = scores_of(values)
    assert (np.diff(scores.view(np.uint64).astype(object)) > 0).all()
    np.testing.assert_array_equal(score_values(scores), values)
    assert scores_of(np.array([-0.0])) == scores_of(np.array([0.0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_covariances_are_the_oracles_to_the_bit(dtype: Any) -> None:
    batch = make_batch(dtype=dtype)
    tokens = tokens_of(batch.logp, batch.advantages, batch.mask)
    running = covariance_candidates(tokens, batch_means(tokens))
    expected, _, _ = reference.covariance(batch.logp, batch.advantages, batch.mask)
    np.testing.assert_array_equal(score_values(running.scores), expected[batch.mask])


# ---- radix select


@settings(deadline=None)
@given(data=st.data())
def test_take_largest_is_a_sort(data: st.DataObject) -> None:
    """Few distinct values, so that ties decide; ids of any size."""
    values = data.draw(st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1.0, 1e-300, 7.0]), max_size=60))
    ids = data.draw(
        st.lists(
            st.integers(0, 5) | st.integers(0, 2**63 - 1),
            min_size=len(values), max_size=len(values), unique=True,
        )
    )  # fmt: skip
    k = data.draw(st.integers(1, 70))
    running = Candidates(scores_of(np.array(values)), np.array(ids, np.int64))
    ranked = sorted(zip(values, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
    assert sorted(take_largest(running, k, one_rank).tolist()) == sorted(i for _, i in ranked[:k])
    if k <= len(values):
        assert kth_largest(running, k, one_rank) == ranked[k - 1][0]


def test_take_largest_over_ranks_is_one_selection() -> None:
    """Three ranks in lockstep: each histogram is the sum of theirs."""
    rng = np.random.default_rng(0)
    values, ids = rng.integers(0, 9, size=500) / 4.0, rng.permutation(10_000)[:500]
    whole = Candidates(scores_of(values), ids)
    expected = set(take_largest(whole, 123, one_rank).tolist())
    seen: list[np.ndarray] = []

    def record(bins: np.ndarray) -> np.ndarray:
        seen.append(bins.copy())
        return bins

    take_largest(whole, 123, record)
    taken: list[int] = []
    for part in np.array_split(np.arange(500), 3):
        summed = iter(seen)
        rank = Candidates(whole.scores[part], ids[part])
        taken += take_largest(rank, 123, lambda _, summed=summed: next(summed)).tolist()
    assert set(taken) == expected and len(taken) == 123


def test_repeated_ids_are_noticed() -> None:
    twice = Candidates(scores_of(np.ones(3)), np.array([4, 4, 4]))
    with pytest.raises(ValueError, match="token_ids must be unique"):
        take_largest(twice, 2, one_rank)


# ---- the whole


@pytest.mark.parametrize("spec", SELECTING.values(), ids=SELECTING)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_select_against_the_oracle(spec: PolicyLossSpec, dtype: Any) -> None:
    for seed in range(5):
        batch = make_batch(seed, dtype=dtype)
        tokens = make_tokens(
            batch.logp, batch.advantages, batch.mask, old_logp=batch.old_logp,
            entropy=batch.entropy, entropy_change=batch.entropy_change,
            token_ids=batch.token_ids,
        )  # fmt: skip
        taken = select(tokens, spec, batch_means(tokens), seed=seed, step=7)
        assert taken.tolist() == chosen(batch, spec, seed=seed, step=7)


def test_clip_cov_draws_anew_each_step_and_evenly() -> None:
    """Over many steps every candidate is drawn equally often: a chi-squared test."""
    batch, spec = make_batch(), SELECTING["many_clip_cov"]
    tokens = make_tokens(
        batch.logp, batch.advantages, batch.mask, old_logp=batch.old_logp,
        token_ids=batch.token_ids,
    )  # fmt: skip
    means = batch_means(tokens)
    pool = candidates(tokens, spec, means).ids
    drawn = np.concatenate([select(tokens, spec, means, seed=3, step=s) for s in range(2000)])
    counts = np.array([np.count_nonzero(drawn == i) for i in pool])
    k = drawn.size // 2000
    share = k / pool.size
    assert counts.sum() == drawn.size and 0.1 < share < 0.9
    # draws without replacement: the statistic is chi-squared with M - 1 degrees of freedom
    statistic = np.sum((counts - 2000 * share) ** 2) / (2000 * share * (1 - share))
    statistic *= (pool.size - 1) / pool.size
    dof = pool.size - 1
    assert abs(statistic - dof) < 5 * np.sqrt(2 * dof)


def covariance_arrays(
    lp: Any, a: Any, mask: Any, old: Any, ids: Any, band: dict[str, float], most: int
) -> tuple[Any, Any]:
    """Scores and ids of the candidates."""
    scores, found = np.empty(lp.size, np.int64), np.empty(lp.size, np.int64)
    number, bad = _core.tokens.covariance_candidates(
        lp, a, mask, old, ids, band, most, scores, found
    )
    assert bad == -1
    return scores[:number], found[:number]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 7, 4099, 300_001])
def test_candidates_of_a_band_are_those_of_plain_code(n: int, dtype: Any) -> None:
    rng = np.random.default_rng(n)
    lp, old, a = (rng.normal(size=n).astype(dtype) for _ in range(3))
    mask = rng.random(n) < 0.7
    lp[~mask], old[~mask] = np.nan, np.inf
    ids = rng.permutation(n).astype(np.int64)
    band = {"mean_advantage": 0.1, "mean_logp": -0.3, "low": 0.2, "high": 2.0,
            "log_low": -0.2, "log_high": 0.3}  # fmt: skip
    d = lp.astype(np.float64) - np.where(mask, old, 0)
    cov = (a.astype(np.float64) - 0.1) * (lp.astype(np.float64) + 0.3)
    clipped = ((a > 0) & (d > 0.3)) | ((a < 0) & (d < -0.2))
    inside = mask & (cov > 0.2) & (cov < 2.0) & ~clipped
    scores, found = covariance_arrays(lp, a, mask, old, ids, band, n)
    assert np.array_equal(found, ids[inside])
    assert np.array_equal(score_values(scores), cov[inside])
    for most in {1, max(n // 500, 1)}:
        some, their_ids = covariance_arrays(lp, a, mask, old, ids, band, most)
        # every one from the least of them on, in their order: no fewer than asked for
        kept = scores.view(np.uint64) >= some.view(np.uint64).min(initial=2**64 - 1)
        assert np.array_equal(their_ids, found[kept])
        assert np.array_equal(some, scores[kept])
        assert min(most, found.size) <= some.size
        assert n < 300_000 or some.size < 0.1 * found.size
    old[np.flatnonzero(mask)[-1:]] = np.nan
    room = np.empty((2, n), np.int64)
    _, bad = _core.tokens.covariance_candidates(lp, a, mask, old, ids, band, n, *room)
    assert bad == (np.flatnonzero(mask)[-1] if mask.any() else -1)


@pytest.mark.parametrize("large", [100, 300])
@pytest.mark.parametrize("seen", [False, True])
def test_the_largest_are_found_wherever_they_are(seen: bool, large: int) -> None:
    """Candidates are kept from a score on that a sample of the tokens, 64 of every 2048, suggests:
    the largest may be in that sample alone, which then expects too many, or none of them."""
    n, most = 80_000, 300
    sampled = np.arange(n) % 2048 < 64
    lp, a = np.ones(n), np.ones(n)
    rng = np.random.default_rng(3)
    lp[rng.choice(np.flatnonzero(sampled == seen), large, replace=False)] = 10 + rng.random(large)
    band = {"mean_advantage": 0.0, "mean_logp": 0.0, "low": -np.inf, "high": np.inf,
            "log_low": -np.inf, "log_high": np.inf}  # fmt: skip
    ids = rng.permutation(n).astype(np.int64)
    scores, found = covariance_arrays(lp, a, np.ones(n, bool), None, ids, band, most)
    assert found.size >= most
    assert set(ids[lp > 1]) <= set(found)
    assert set(score_values(scores[np.isin(found, ids[lp > 1])])) == set(lp[lp > 1])


def test_kl_cov_takes_the_largest_however_the_covariances_lie() -> None:
    """Few or many near the k-th, negative ones among them, ties, fewer than k."""
    rng = np.random.default_rng(5)
    n, spec = 5000, SELECTING["many_kl_cov"]
    assert isinstance(spec.control, KLCov)
    normal = rng.normal(size=n)
    signs = rng.integers(-1, 2, size=n).astype(np.float64)
    for a in (normal, np.ones(n), np.abs(normal) + 1, np.exp(4 * normal), signs):
        lp = -np.abs(rng.integers(0, 50, size=n) / 8.0)
        for mask in (np.ones(n, bool), rng.random(n) < 0.3, np.arange(n) == 17):
            ids = rng.permutation(n).astype(np.int64)
            tokens = make_tokens(lp, a, mask, token_ids=ids)
            means = batch_means(tokens)
            cov = (a - means.advantage) * (lp - means.logp)
            k = max(int(spec.control.fraction * means.tokens), 1)
            order = [i for i in np.lexsort((ids, -cov)) if mask[i]][:k]
            assert select(tokens, spec, means, seed=0, step=0).tolist() == sorted(ids[order])


@given(st.data())
def test_repeated_ids_and_members_of_runs(data: st.DataObject) -> None:
    """Ids that rise by one in parts longer and shorter than what is looked at at once."""
    starts = data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=5))
    lengths = data.draw(st.lists(st.integers(1, 700), min_size=len(starts), max_size=len(starts)))
    parts = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    ids = np.concatenate(parts).astype(np.int64)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = rng.random(ids.size) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    values, counts = np.unique(ids[mask], return_counts=True)
    repeated = _core.tokens.repeated_id(ids, mask)
    if (counts > 1).any():
        assert repeated in values[counts > 1]
    else:
        assert repeated is None
    chosen = np.unique(rng.integers(0, 4000, size=data.draw(st.integers(0, 60)))).astype(np.int64)
    out = np.empty(ids.size, np.bool_)
    _core.tokens.members(ids, chosen, out)
    assert np.array_equal(out, np.isin(ids, chosen))


def test_instruction_sets_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, covariances, random keys, exponentials and losses of each one this CPU has."""
    rng = np.random.default_rng(2)
    n = 10_007
    lp, old, a = (rng.normal(size=n).astype(np.float32) for _ in range(3))
    mask, selected = rng.random(n) < 0.8, rng.random(n) < 0.1
    band = {"mean_advantage": 0.1, "mean_logp": -0.3, "low": 0.5, "high": 2.0,
            "log_low": -0.2, "log_high": 0.2}  # fmt: skip
    ids, x = rng.integers(0, 2**62, size=n), rng.normal(size=n) * 100
    seen = {}
    for isa in _core.runtime.build_info()["isas"]:
        monkeypatch.setenv("LOGITLESS_ISA", isa)
        sums, keys, powers = (
            np.zeros(_core.tokens.SUM_WORDS, np.int64),
            np.empty(n, np.int64),
            np.empty(n),
        )
        _core.tokens.value_sums(lp, a, mask, sums)
        inside = covariance_arrays(lp, a, mask, old, ids, band, n)
        largest = covariance_arrays(lp, a, mask, None, ids, band, 20)
        _core.tokens.random_scores(ids, 2**63 + 5, 7, keys)
        _core.tokens.exp(x, powers)
        out = [sums, *inside, *largest, keys, powers]
        for name in ("ppo", "clip_cov", "kl_cov", "sapo", "cispo"):
            g = np.empty_like(lp)
            told = core_params(presets[name])
            _core.tokens.token_loss(
                logp=lp, old_logp=old, advantages=a, weights=None, mask=mask, weight=1 / n,
                entropy=None, kl_logp=None, penalty_logp=old, selected=selected, g_logp=g,
                g_entropy=None, mean_advantage=0.1, mean_logp=-0.2, grad_scale=1.0,
                **told,
            )  # fmt: skip
            out += [g, told["sums"]]
        seen[isa] = [part.tobytes() for part in out]
    assert len({tuple(parts) for parts in seen.values()}) == 1
    np.testing.assert_allclose(powers, np.exp(x), rtol=4e-16)


def test_exp_beyond_its_table() -> None:
    x = np.array([-np.inf, -800.0, -745.0, -700.0, 0.0, 700.0, 709.7, 710.0, np.inf, np.nan])
    out = np.empty_like(x)
    _core.tokens.exp(x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(out, np.exp(x), rtol=4e-16)


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(1)
    # more than one chunk of the candidates
    n = 600_000
    lp, a, mask = rng.normal(size=n), rng.normal(size=n), rng.random(n) < 0.8
    band = {"mean_advantage": 0.1, "mean_logp": -0.3, "low": 0.5, "high": 2.0,
            "log_low": -0.2, "log_high": 0.2}  # fmt: skip
    seen = set()
    for threads in (1, 2, 5):
        sums = np.zeros(_core.tokens.SUM_WORDS, np.int64)
        _core.tokens.value_sums(lp, a, mask, sums, threads)
        parts = covariance_arrays(lp, a, mask, np.zeros(n), np.arange(n), band, threads)
        seen.add((sums.tobytes(), *(part.tobytes() for part in parts)))
    assert len(seen) == 1
