"""What a device's token kernels find among many tokens, over several blocks: the CPU's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from logitless.backends.row_kernels import errors
from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.backends.token_kernels.protocol import SUMS, Band, Candidates
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.metrics import CORRECTION_SUMS, Given, metric_table
from logitless.loss.evaluate.selection import select
from logitless.loss.evaluate.surveys import spec_means
from tests.support.device.devices import Device
from tests.support.device.interpreter import programs_backwards
from tests.support.device.waits import NothingIsRead
from tests.support.losses.loss_specs import SELECTING, SPECS, make_batch

# Two blocks of the kernels with the largest ones, and some of a third.
N = 2 * 4096 + 77


def one_rank(values: Any) -> Any:
    return values


def there(device: Device, *arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(x).to(device.name) for x in arrays]


def candidates(device: Device, values: np.ndarray, ids: np.ndarray, out: Any) -> tuple[Any, Any]:
    """The CPU's, and the device's with tokens among them that are none."""
    scores = CPU_TOKENS.ordered(tokens_of(values), ~out, values).scores
    everywhere = np.zeros(values.size, np.int64)
    everywhere[~out] = scores
    return (
        Candidates(scores, ids[~out]),
        Candidates(*there(device, everywhere, np.where(out, -1, ids))),
    )


def tokens_of(values: np.ndarray, kernels: Any = CPU_TOKENS, **more: Any) -> Any:
    mask = np.ones(values.size, np.bool_)
    arrays = {"logp": values, "advantages": values, "mask": mask, **more}
    if kernels is not CPU_TOKENS:
        arrays = {k: torch.from_numpy(x).to(kernels.device) for k, x in arrays.items()}
    return make_tokens(**arrays, kernels=kernels)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("name", SELECTING)
def test_selection(device: Device, kernels: Any, name: str) -> None:
    """Of float32 values, many of which are equal."""
    spec, batch = SELECTING[name], make_batch(3, (56, 150), np.float32)
    assert batch.mask.size > N
    names = ("logp", "advantages", "mask", "old_logp", "entropy", "rollout_logp",
             "entropy_change", "token_ids")  # fmt: skip
    given = {name: getattr(batch, name) for name in names}
    for coarse in ("logp", "entropy", "entropy_change"):
        given[coarse] = (given[coarse] * 8).round() / 8
    tokens = make_tokens(**given)
    means = spec_means(tokens, spec)
    expected = select(tokens, spec, means, seed=1, step=2)
    moved = dict(zip(given, there(device, *map(np.ascontiguousarray, given.values())), strict=True))
    with NothingIsRead():
        ours = make_tokens(**moved, kernels=kernels)
        found_means: Any = spec_means(ours, spec)
        found = select(ours, spec, found_means, seed=1, step=2)
    assert (found_means.advantage.item(), found_means.logp.item()) == means[:2]
    assert int(found_means.tokens) == means.tokens
    np.testing.assert_array_equal(found[found >= 0].cpu(), expected)
    errors.raise_now(found.device)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_have_the_bits_of_the_cpu(
    device: Device, kernels: Any, rng: np.random.Generator, dtype: Any
) -> None:
    """Of covariances inside a band, and of values of both signs of 0."""
    logp, advantages, old = (rng.normal(size=N).astype(dtype) for _ in range(3))
    mask, ids = rng.random(N) < 0.9, rng.permutation(3 * N)[:N]
    band = Band(0.1234567890123, -0.2345678901234, -1.5, 2.5, -0.3, 0.3)
    given = {"logp": logp, "advantages": advantages, "mask": mask, "token_ids": ids}
    own = make_tokens(**given)
    moved = dict(zip(given, there(device, *given.values()), strict=True))
    other, (old_there,) = make_tokens(**moved, kernels=kernels), there(device, old)
    zeros = rng.choice([-1.0, -0.0, 0.0, 5e-324, -np.inf], N)
    found = (kernels.covariances(other, band, None, N)[0],
             kernels.covariances(other, band, old_there, N)[0],
             kernels.ordered(other, *there(device, mask, zeros)))  # fmt: skip
    expected = (CPU_TOKENS.covariances(own, band, None, N)[0],
                CPU_TOKENS.covariances(own, band, old, N)[0],
                CPU_TOKENS.ordered(own, mask, zeros))  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        inside = (ours.ids >= 0).cpu()
        assert 0 < len(theirs.ids) == inside.sum() < N
        np.testing.assert_array_equal(ours.ids.cpu()[inside], theirs.ids)
        np.testing.assert_array_equal(ours.scores.cpu()[inside], theirs.scores)


def test_limits_are_float64s(device: Device, kernels: Any) -> None:
    """Of covariances and of log ratios: the next number inside of them is inside."""
    low, high, log_low, log_high = -0.7, 0.9, -0.3, 0.6
    values = np.array([low, np.nextafter(low, 1), np.nextafter(high, 0), high])
    tokens = tokens_of(np.ones(4), kernels, advantages=values)
    band = Band(0.0, 0.0, low, high, log_low, log_high)
    assert kernels.covariances(tokens, band, None, 4)[0].ids.tolist() == [-1, 1, 2, -1]
    signs = np.array([-0.5, -0.5, 0.5, 0.5])
    logp = np.array([np.nextafter(log_low, -1), log_low, log_high, np.nextafter(log_high, 1)])
    tokens = tokens_of(logp, kernels, advantages=signs)
    (old,) = there(device, np.zeros(4))
    assert kernels.covariances(tokens, band, old, 4)[0].ids.tolist() == [-1, 1, 2, -1]


def test_an_old_logp_that_is_not_finite(device: Device, kernels: Any) -> None:
    """Of a valid token; the first of them is flagged."""
    logp, old = np.linspace(-1, 1, 9), np.zeros(9)
    old[[2, 4, 6]] = -np.inf, np.inf, np.nan
    mask = np.arange(9) != 2
    (old_there,) = there(device, old)
    kernels.covariances(tokens_of(logp, kernels, mask=mask), Band(0.0, 0.0), old_there, 9)
    kernels.done("batch_stats")
    with pytest.raises(RuntimeError, match="batch_stats: row 4: "):
        errors.raise_now(old_there.device)


@pytest.mark.parametrize("exponents", [(0, 0), (-40, 40), (-300, -250), (60, 200)])
def test_means_are_exact(
    device: Device, kernels: Any, rng: np.random.Generator, exponents: tuple[int, int]
) -> None:
    """Of any magnitudes that the CPU does not scale, cancelling or not."""
    low, high = exponents
    first = rng.normal(size=N) * 2.0 ** rng.integers(low, high + 1, N)
    first[N // 2 : N // 2 * 2] = -first[: N // 2] * (1 + 2.0**-50 * rng.integers(0, 3, N // 2))
    second = np.where(rng.random(N) < 0.9, 0.0, 5e-324 * rng.integers(-3, 4, N))
    mask = rng.random(N) < 0.7
    own, other = tokens_of(first, mask=mask), tokens_of(first, kernels, mask=mask)
    for a, b in ((first, second), (second, first), (first, first * 0 - 0.0)):
        expected = CPU_TOKENS.exact_means(own, a, b, one_rank)
        found = kernels.exact_means(other, *there(device, a, b), one_rank)
        assert (found.first.item(), found.second.item()) == (expected.first, expected.second)
        assert found.number.item() == expected.number == mask.sum()


@pytest.mark.parametrize("k", [1, 2, 77, 4096, N // 2, N - 900, N, N + 5])
def test_the_largest(device: Device, kernels: Any, rng: np.random.Generator, k: int) -> None:
    """With ties, which the ids break; and the value of the k-th."""
    values = rng.integers(-40, 40, N) / 8.0
    ids, out = rng.permutation(3 * N)[:N], rng.random(N) < 0.1
    ids[:3] = 2**62 + np.arange(3)
    cpu, ours = candidates(device, values, ids, out)
    k_there = torch.tensor(k, device=device.name)
    with NothingIsRead():
        taken = [kernels.take_largest(ours, number, one_rank) for number in (k, k_there)]
        value = kernels.kth_largest(ours, k_there, one_rank)
    expected = np.sort(CPU_TOKENS.take_largest(cpu, k, one_rank))
    for found in taken:
        np.testing.assert_array_equal(np.sort(found[found >= 0].cpu()), expected)
    if k <= cpu.ids.size:
        assert value.item() == CPU_TOKENS.kth_largest(cpu, k, one_rank)
    errors.raise_now(value.device)


def test_the_largest_over_ranks(device: Device, kernels: Any, rng: np.random.Generator) -> None:
    """Three ranks in lockstep: each histogram is the sum of theirs."""
    values, ids = rng.integers(0, 9, size=500) / 4.0, rng.permutation(10_000)[:500]
    _, whole = candidates(device, values, ids, np.zeros(500, np.bool_))
    seen: list[torch.Tensor] = []

    def record(bins: torch.Tensor) -> torch.Tensor:
        seen.append(bins.clone())
        return bins

    expected = kernels.take_largest(whole, 123, record)
    digits = len(seen)
    value = kernels.kth_largest(whole, 123, record)
    taken: list[int] = []
    # one without a token
    for first, stop in ((0, 167), (167, 167), (167, 499), (499, 500)):
        rank = Candidates(whole.scores[first:stop], whole.ids[first:stop])
        summed, more = iter(seen[:digits]), iter(seen[digits:])
        found = kernels.take_largest(rank, 123, lambda _, summed=summed: next(summed))
        taken += found[found >= 0].tolist()
        of_rank = kernels.kth_largest(rank, 123, lambda _, more=more: next(more))
        assert of_rank.item() == value.item()
    assert len(taken) == 123
    assert set(taken) == set(expected[expected >= 0].tolist())


@pytest.mark.parametrize(("k", "flagged"), [(2, False), (3, True), (4, False), (5, False)])
def test_a_key_of_two_tokens(device: Device, kernels: Any, k: int, flagged: bool) -> None:
    """Of which one were selected: it is flagged. Not so where both are, though the last digit
    decides, or neither."""
    values, ids = np.array([5.0, 1.0, 1.0, 1.0, 7.0, 0.5]), np.array([4, 9, 10, 9, 2, 1])
    _, found = candidates(device, values, ids, np.zeros(6, np.bool_))
    taken = kernels.take_largest(found, k, one_rank)
    kernels.done("batch_stats")
    if not flagged:
        errors.raise_now(taken.device)
        assert sorted(taken[taken >= 0].tolist()) == sorted(ids[[4, 0, 1, 3, 2]][:k].tolist())
        return
    with pytest.raises(RuntimeError, match="batch_stats: row 1: "):
        errors.raise_now(taken.device)


def test_extremes(device: Device, kernels: Any, rng: np.random.Generator) -> None:
    values = rng.normal(size=N)
    own, other = tokens_of(values), tokens_of(values, kernels)
    for which in (rng.random(N) < 0.3, np.arange(N) == 4321, np.zeros(N, np.bool_)):
        with NothingIsRead():
            found = kernels.extremes(other, *there(device, which, values), one_rank)
        assert tuple(x.item() for x in found) == CPU_TOKENS.extremes(own, which, values, one_rank)


def test_sequences(device: Device, kernels: Any, rng: np.random.Generator) -> None:
    """Short, long, empty and masked ones."""
    lengths = np.array([0, 1, 31, 300, 0, 5000, 7])
    n, cu_seqlens = int(lengths.sum()), np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    values, mask = rng.normal(size=n), rng.random(n) < 0.5
    mask[-7:] = False
    values[~mask] = np.nan
    more = {"mask": mask, "cu_seqlens": cu_seqlens, "token_ids": rng.permutation(n)}
    own, other = tokens_of(values, **more), tokens_of(values, kernels, **more)
    (moved,) = there(device, values)
    with NothingIsRead():
        found = [kernels.lengths(other), kernels.first_ids(other), kernels.largest(other, moved)]
        sums = kernels.sums(other, moved)
    expected = [CPU_TOKENS.lengths(own), CPU_TOKENS.first_ids(own), CPU_TOKENS.largest(own, values)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.cpu(), theirs)
    np.testing.assert_allclose(sums.cpu(), CPU_TOKENS.sums(own, values), rtol=1e-13, atol=1e-13)


def test_exp_has_the_bits_of_the_cpu(
    device: Device, kernels: Any, rng: np.random.Generator
) -> None:
    x = np.concatenate([rng.normal(0, 300, N - 4), [0.0, -0.0, 699.9, -699.9]])
    x = x[abs(x) < 700]
    own = tokens_of(x)
    (moved,) = there(device, x)
    np.testing.assert_array_equal(
        kernels.exp(tokens_of(x, kernels), moved).cpu(), CPU_TOKENS.exp(own, x)
    )


def test_exp_beyond_its_series(device: Device, kernels: Any) -> None:
    """Where a power of two alone is no normal number, and where it is infinite or 0."""
    far = np.array([700.0, 705.5, 709.78, 709.79, 1e6, np.inf, -700.0, -708.5, -740.0, -745.1,
                    -745.2, -1e6, -np.inf, np.nan])  # fmt: skip
    found = kernels.exp(tokens_of(far, kernels), *there(device, far)).cpu().numpy()
    with np.errstate(over="ignore"):
        truth = np.exp(far)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(truth))
    np.testing.assert_allclose(found, truth, rtol=2**-51, atol=5e-324)


def test_the_same_random_order(device: Device, kernels: Any, rng: np.random.Generator) -> None:
    ids = rng.permutation(2**40 + np.arange(N))
    cpu = CPU_TOKENS.shuffled(Candidates(np.zeros(N, np.int64), ids.copy()), 2**63 + 5, 7)
    empty = Candidates(*there(device, np.zeros(N, np.int64), ids))
    ours = kernels.shuffled(empty, 2**63 + 5, 7)
    np.testing.assert_array_equal(ours.scores.cpu(), cpu.scores)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.7, 1.0])
def test_ids_in_order(device: Device, kernels: Any, rng: np.random.Generator, share: float) -> None:
    """Of one block and of three, with ids as large as int64; and of as many as Triton merges
    twice, each id that of two tokens."""
    ids = np.where(rng.random(N) < share, rng.permutation(3 * N)[:N] + 2**62, -1)
    more = [rng.permutation(33_000) // 2] if device.interpreted and share == 1 else []
    for some in (ids, ids[:300], ids[:0], *more):
        (moved,) = there(device, some)
        with NothingIsRead():
            found = kernels.xp.sort(moved)
        np.testing.assert_array_equal(found.cpu(), np.sort(some))


@pytest.mark.parametrize("step", [1, 2**20, 2**41])
def test_an_id_of_two_tokens(
    device: Device, kernels: Any, rng: np.random.Generator, step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The second of them is flagged, of three as well, whoever comes first; ids of masked tokens
    are nobody's."""
    if device.interpreted and step == 1:
        programs_backwards(monkeypatch)
    ids, mask = rng.permutation(N) * step, rng.random(N) < 0.9
    mask[[7, 100, 5000]] = True
    ids[~mask] = ids[7]
    values, there_is = np.zeros(N), torch.device(device.name)
    kernels.repeated_id(tokens_of(values, kernels, mask=mask, token_ids=ids))
    kernels.done("batch_stats")
    errors.raise_now(there_is)
    ids[[100, 5000]] = ids[7]
    kernels.repeated_id(tokens_of(values, kernels, mask=mask, token_ids=ids))
    kernels.done("batch_stats")
    with pytest.raises(RuntimeError, match="batch_stats: row 100: "):
        errors.raise_now(there_is)


def test_numbers_side_by_side(device: Device, kernels: Any) -> None:
    """Of the host, of both dtypes, and one that the kernel does not read."""
    given = torch.tensor([0.1, 3.0], dtype=torch.float64, device=device.name)
    count, narrow = torch.tensor(2**40 + 1, device=device.name), torch.ones((), device=device.name)
    for more in ((), (narrow,), (1.0,) * 40):
        found = kernels.xp.vector((given[0], 0.25, count, *more), given)
        assert found.tolist() == [0.1, 0.25, 2.0**40 + 1, *(1.0 for _ in more)]


@pytest.mark.parametrize("total", [None, 0, 7])
def test_metrics(device: Device, kernels: Any, total: int | None) -> None:
    """As the host has them, and the loss."""
    table = metric_table(SPECS["correction_tis"], Given(True, True, True, "call"))
    sums = np.arange(1.0, len(SUMS) + len(CORRECTION_SUMS) + 1)
    (moved,) = there(device, sums)
    known = None if total is None else torch.tensor(total, device=device.name)
    for given, wide in ((total, True), (known, False)):
        with NothingIsRead():
            loss, found = kernels.outputs(table.sums, moved, given, wide=wide)
        assert loss.dtype == (torch.float64 if wide else torch.float32) and loss.item() == 1.0
        truth, expected = CPU_TOKENS.outputs(table.sums, sums, total, wide=wide)
        assert truth == 1.0 and expected[0] == np.float32(
            sums[3] / max(10 if total is None else total, 1)
        )
        np.testing.assert_array_equal(found.cpu(), expected)
