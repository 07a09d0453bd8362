"""Which tokens a control acts on: exactly k of the optimizer batch, the same on any split of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.inputs.sequences import Float64s, exp, log_ratio_of, valid
from logitless.inputs.tokens import Bools, Floats, Int64s, Tokens
from logitless.loss.evaluate.aggregation import selection_size
from logitless.loss.evaluate.importance import importance
from logitless.loss.evaluate.policy_weights import entropy_credit
from logitless.loss.evaluate.ratio import own_log_ratio, policy_term
from logitless.loss.evaluate.token_loss import Means, log_range
from logitless.loss.spec import (
    ClipB,
    ClipCov,
    ClipV,
    EntropyWeights,
    KLCov,
    PolicyLossSpec,
    TopEntropy,
)

# Adds an int64 array over the ranks of a batch.
Reduce = Callable[[Int64s], Int64s]

BINS, LEVELS = 256, 16
# Candidates that a histogram counts in the time of its own call.
FEW = 4096
# Bytes of an array from which its pages are worth handing from call to call.
LARGE = 1 << 20
# Of magnitudes between 2^-ORDINARY and 2^ORDINARY, two deviations from a mean have a product, and
# one has a square, that neither vanishes nor overflows: no deviation but 0 is below 2^-53 of them.
ORDINARY = 256


class Candidates(NamedTuple):
    """Tokens in the running: larger score (64 unsigned bits in an int64) first, then smaller id."""

    scores: Int64s  # [M]
    ids: Int64s  # [M]
    threads: int = 0


def one_rank(values: Int64s) -> Int64s:
    """The `Reduce` of a batch that lives in one process."""
    return values


def batch_means(tokens: Tokens, reduce: Reduce = one_rank) -> Means:
    """mean(A), mean(logp) and the count over valid tokens of all ranks."""
    return exact_means(tokens, tokens.advantages, tokens.logp, ("advantages", "logp"), reduce)


def spec_means(tokens: Tokens, spec: PolicyLossSpec, reduce: Reduce = one_rank) -> Means:
    """The batch means that the spec's policy term uses beside those of A and logp as well."""
    means = batch_means(tokens, reduce)
    if isinstance(spec.control, EntropyWeights):
        means = means._replace(credit=_mean_credit(tokens, spec.control, reduce))
    if spec.correction is not None and spec.correction.normalize:
        if tokens.rollout_logp is None:
            raise ValueError(
                f"rollout_logp must be given with spec.correction={spec.correction}, got None"
            )
        if tokens.old_logp is None:
            tokens = dataclasses.replace(tokens, old_logp=tokens.logp)
        w = valid(tokens, importance(tokens, spec.correction).weights)
        names = ("rollout weights", "rollout weights")
        means = means._replace(importance=exact_means(tokens, w, w, names, reduce).logp)
    return means


def _mean_credit(tokens: Tokens, control: EntropyWeights, reduce: Reduce) -> tuple[float, float]:
    """The means of the entropy credit over the tokens with A > 0 and over those with A < 0."""
    _finite(tokens, "entropy", tokens.entropy)
    credit, a = entropy_credit(tokens, control), valid(tokens, tokens.advantages)
    names = ("entropy", "entropy")
    positive, negative = (
        exact_means(dataclasses.replace(tokens, mask=side), credit, credit, names, reduce).logp
        for side in (a > 0, a < 0)
    )
    return positive, negative


def exact_means(
    tokens: Tokens,
    first: Floats,  # [N]
    second: Floats,
    names: tuple[str, str],
    reduce: Reduce,
) -> Means:
    """The means of two arrays over the valid tokens of all ranks, and the count.

    The sums are exact and each mean rounds once: order and split cannot change a bit.
    """
    words = np.empty(_core.tokens.SUM_WORDS, np.int64)
    bad = _core.tokens.value_sums(second, first, tokens.mask, words, tokens.threads)
    if bad >= 0:
        raise ValueError(
            f"{names[0]} and {names[1]} must be finite where the mask is true, got "
            f"{first[bad]} and {second[bad]} at {tokens.place(bad)}"
        )
    words = reduce(words)
    sums, tops, digits = [0, 0], [-1, -1], _core.tokens.SUM_DIGITS
    for i in np.flatnonzero(words[:-1]).tolist():
        part, digit = divmod(i, digits)
        if part < 2:
            sums[part] += int(words[i]) << 32 * digit
        else:
            tops[part - 2] = digit
    count = int(words[-1])
    # int / int rounds once, correctly
    a, b = (total / (max(count, 1) << -_core.tokens.SUM_LOWEST) for total in sums)
    return Means(a, b, count, exponents=(_exponent(tops[0]), _exponent(tops[1])))


def _exponent(digit: int) -> int:
    """Where the largest magnitude lies at this digit: 0, or from where on products of deviations
    might vanish or overflow the power of two that makes it one in [1, 2^32)."""
    exponent = 32 * digit + _core.tokens.SUM_LOWEST
    return 0 if digit < 0 or -ORDINARY <= exponent < ORDINARY else exponent


def ordinary(tokens: Tokens, means: Means) -> tuple[Tokens, Means]:
    """Advantages, log-probs and their means, divided by 2 to the `means.exponents`. That divides
    covariances by 2^sum(means.exponents) and keeps their order."""
    if not any(means.exponents):
        return tokens, means
    a, logp = means.exponents
    scaled = dataclasses.replace(
        tokens,
        advantages=scaled_by(valid(tokens, tokens.advantages), -a),
        logp=scaled_by(valid(tokens, tokens.logp), -logp),
    )
    return scaled, means._replace(
        advantage=float(scaled_by(means.advantage, -a)),
        logp=float(scaled_by(means.logp, -logp)),
        exponents=(0, 0),
    )


def scaled_by(x: Any, exponent: int) -> Any:
    """x 2^exponent, which may be infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, exponent)


def covariance_candidates(tokens: Tokens, means: Means) -> Candidates:
    """All valid tokens in the order of their covariance, see `ordinary`."""
    tokens, means = ordinary(tokens, means)
    return _covariance_candidates(tokens, _band(means), None)


def candidates(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, reduce: Reduce = one_rank
) -> Candidates:
    """The tokens `spec.control` may select, in the order of what it selects by; of KL-Cov only
    those that may be among the k largest. Clip-Cov's order is random: its scores are still to be
    written."""
    control = spec.control
    if isinstance(control, ClipCov):
        return _clip_cov_candidates(tokens, spec, control, means)
    if isinstance(control, KLCov):
        k = selection_size(control.fraction, means.tokens)
        tokens, means = ordinary(tokens, means)
        # of each rank: the k largest of all are among them
        return _covariance_candidates(tokens, _band(means), None, k)
    if isinstance(control, TopEntropy):
        return _ordered(tokens, tokens.mask, _finite(tokens, "entropy", tokens.entropy))
    pushed_down = tokens.mask & (valid(tokens, tokens.advantages) < 0)
    if isinstance(control, ClipB):
        s = _surprise(tokens)
        mean, deviation = _moments(tokens, s, "p (entropy + logp)", reduce)
        return _ordered(tokens, pushed_down & (s - mean < -control.mu * deviation), -s)
    assert isinstance(control, ClipV)
    d = _finite(tokens, "entropy_change", tokens.entropy_change)
    _, deviation = _moments(tokens, d, "entropy_change", reduce)
    return _ordered(tokens, pushed_down & (d > control.mu * deviation), d)


def select(
    tokens: Tokens,
    spec: PolicyLossSpec,
    means: Means,
    *,
    seed: int,
    step: int,
    reduce: Reduce = one_rank,
) -> Int64s:
    """The sorted ids of this rank's tokens among the selected ones of all ranks."""
    running = candidates(tokens, spec, means, reduce)
    if isinstance(spec.control, ClipCov):
        _core.tokens.random_scores(running.ids, seed, step, running.scores, running.threads)
    k = most_selected(spec, means.tokens)
    return np.sort(running.ids if k is None else take_largest(running, k, reduce))


def select_in_call(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, permute: Callable[[int], Int64s]
) -> Bools:
    """verl's selection: statistics and k of this call; Clip-Cov takes the first k of `permute`."""
    place = dataclasses.replace(tokens, given_ids=None)
    running, k = candidates(place, spec, means), most_selected(spec, means.tokens)
    assert k is not None
    if isinstance(spec.control, ClipCov):
        chosen = running.ids[permute(running.ids.size)[:k]]
    else:
        chosen = take_largest(running, k)
    selected = np.zeros(tokens.logp.size, np.bool_)
    selected[chosen] = True
    return selected


def most_selected(spec: PolicyLossSpec, tokens: int) -> int | None:
    """How many of the batch's valid tokens are selected at most; None: all candidates."""
    control = spec.control
    if isinstance(control, ClipV):
        return selection_size(control.max_fraction, tokens)
    if isinstance(control, (ClipCov, KLCov, TopEntropy)):
        return selection_size(control.fraction, tokens)
    return None


def take_largest(running: Candidates, k: int, reduce: Reduce = one_rank) -> Int64s:
    """Unordered: the ids on this rank of the k largest keys of all ranks, or all if fewer."""
    words, needed, rest = [0, 0], k, running
    for level in range(LEVELS):
        counts = _histogram(rest, words, level, reduce)
        if level == 0 and counts.sum() <= k:
            return running.ids
        digit, needed = _digit(counts, needed)
        words[level // 8] |= digit << (56 - 8 * (level % 8))
        if counts[digit] == needed:
            break
        rest = _starting(rest, words, level)
    else:
        raise ValueError("token_ids must be unique over the optimizer batch, got one id twice")
    # the lower digits of the prefix are 0: the last bin taken, and all above it, are what is not
    # below the prefix
    score, inverted = (np.uint64(word) for word in words)
    scores, inverted_ids = running.scores.view(np.uint64), (~running.ids).view(np.uint64)
    taken: Bools = (scores > score) | ((scores == score) & (inverted_ids >= inverted))
    return running.ids[taken]


def kth_largest(running: Candidates, k: int, reduce: Reduce = one_rank) -> float:
    """The number behind the k-th largest score of all ranks, 1 <= k <= their number."""
    words, needed = [0, 0], k
    for level in range(LEVELS // 2):
        digit, needed = _digit(_histogram(running, words, level, reduce), needed)
        words[0] |= digit << (56 - 8 * level)
        running = _starting(running, words, level)
    return float(score_values(np.array([words[0]], np.uint64).view(np.int64))[0])


def score_values(scores: Int64s) -> npt.NDArray[np.float64]:
    """The numbers whose order the scores are."""
    bits = scores.view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, bits ^ sign, ~bits).view(np.float64)


def _histogram(running: Candidates, words: list[int], level: int, reduce: Reduce) -> Int64s:
    bins = np.empty(BINS, np.int64)
    scores, ids, threads = running
    _core.tokens.radix_histogram(scores, ids, words[0], words[1], level, bins, threads)
    return reduce(bins)


def _starting(running: Candidates, words: list[int], level: int) -> Candidates:
    """Those whose score starts like the prefix: only they count at the next level. Where they are
    few already, looking for fewer costs more than counting them again."""
    if running.ids.size < FEW or level >= LEVELS // 2:
        return running
    shift = np.uint64(56 - 8 * level)
    same = running.scores.view(np.uint64) >> shift == np.uint64(words[0]) >> shift
    return Candidates(running.scores[same], running.ids[same], running.threads)


def _digit(counts: Int64s, needed: int) -> tuple[int, int]:
    """The bin that holds the needed-th largest key, and how many of that bin are needed."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, needed))
    return counts.size - 1 - place, needed - (int(from_top[place - 1]) if place else 0)


def _band(
    means: Means,
    values: tuple[float, float] = (-np.inf, np.inf),
    log_ratios: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, float]:
    """Candidates have a covariance inside `values` and a log ratio that leaves `log_ratios` not on
    the side of their advantage."""
    return {
        "mean_advantage": means.advantage,
        "mean_logp": means.logp,
        "low": values[0],
        "high": values[1],
        "log_low": log_ratios[0],
        "log_high": log_ratios[1],
    }


def _covariance_candidates(
    tokens: Tokens, band: dict[str, float], old_logp: Floats | None, most: int | None = None
) -> Candidates:
    """Those inside the band; `most`: with so many of the largest among them, others may lack."""
    most = tokens.logp.size if most is None else most
    scores, ids = _room(tokens.logp.size), _room(tokens.logp.size)
    number, bad = _core.tokens.covariance_candidates(
        tokens.logp, tokens.advantages, tokens.mask, old_logp, tokens.ids, band, most, scores, ids,
        tokens.threads,
    )  # fmt: skip
    if bad >= 0:
        assert old_logp is not None
        raise ValueError(
            f"old_logp must be finite where the mask is true, got {old_logp[bad]} at "
            f"{tokens.place(bad)}"
        )
    return Candidates(scores[:number], ids[:number], tokens.threads)


def _room(n: int) -> Int64s:
    """[n], of which few are written, all over it. A large one is memory that an earlier call left
    (csrc/cpu/runtime/memory.h): all its pages are touched, and would be new."""
    if 8 * n < LARGE:
        return np.empty(n, np.int64)
    memory: Any = _core.runtime.Memory(8 * n)
    return np.frombuffer(memory, np.int64, n)


def _clip_cov_candidates(
    tokens: Tokens, spec: PolicyLossSpec, control: ClipCov, means: Means
) -> Candidates:
    old_logp = tokens.old_logp
    if old_logp is not None and (spec.sequence_ratio or any(means.exponents)):
        unclipped = tokens.mask & ~_clipped(tokens, spec)
        tokens, old_logp = dataclasses.replace(tokens, mask=unclipped), None
    low, high = scaled_by(np.array([control.low, control.high]), -sum(means.exponents)).tolist()
    tokens, means = ordinary(tokens, means)
    return _covariance_candidates(
        tokens, _band(means, (low, high), log_range(spec.surrogate)), old_logp
    )


def _clipped(tokens: Tokens, spec: PolicyLossSpec) -> Bools:
    if spec.sequence_ratio:
        log_ratio = policy_term(tokens, spec).log_ratio
        u = own_log_ratio(tokens, spec) if log_ratio is None else log_ratio
    else:
        u = log_ratio_of(tokens, "logp", "old_logp")
    log_low, log_high = log_range(spec.surrogate)
    a = valid(tokens, tokens.advantages)
    return np.asarray(((a > 0) & (u > log_high)) | ((a < 0) & (u < log_low)))


def _surprise(tokens: Tokens) -> Float64s:
    """S = p (entropy + logp) of each valid token, 0 elsewhere."""
    entropy = _finite(tokens, "entropy", tokens.entropy)
    logp = valid(tokens, tokens.logp)
    return np.where(tokens.mask, exp(tokens, logp) * (entropy + logp), 0.0)


def _moments(tokens: Tokens, x: Float64s, name: str, reduce: Reduce) -> tuple[float, float]:
    """Mean and population standard deviation over the valid tokens of all ranks."""
    means = exact_means(tokens, x, x, (name, name), reduce)
    exponent, _ = means.exponents
    away = scaled_by(x, -exponent) - scaled_by(means.advantage, -exponent)
    squares = away * away
    variance = exact_means(tokens, squares, squares, (f"{name}^2", f"{name}^2"), reduce).advantage
    return means.advantage, float(scaled_by(variance**0.5, exponent))


def _finite(tokens: Tokens, name: str, values: Floats | None) -> Float64s:
    if values is None:
        raise ValueError(f"the spec's control needs {name}, got {name}=None")
    wide = valid(tokens, values)
    bad = np.flatnonzero(~np.isfinite(wide))
    if bad.size:
        raise ValueError(
            f"{name} must be finite where the mask is true, got {wide[bad[0]]} "
            f"at {tokens.place(int(bad[0]))}"
        )
    return wide


def _ordered(tokens: Tokens, which: Bools, values: Float64s) -> Candidates:
    scores = np.empty(np.count_nonzero(which), np.int64)
    _core.tokens.ordered_scores(values[which], scores, tokens.threads)
    return Candidates(scores, tokens.ids[which], tokens.threads)
