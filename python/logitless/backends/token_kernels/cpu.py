"""The token kernels of the compiled core, on NumPy arrays."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from logitless import _core
from logitless.backends.token_kernels import radix_select
from logitless.backends.token_kernels.arrays import NumpyArrays
from logitless.backends.token_kernels.protocol import (
    SUMS,
    Band,
    Candidates,
    ExactMeans,
    LossTerms,
    LossValues,
    Reduce,
)
from logitless.inputs.tokens import Bools, Float64s, Floats, Int64s, Tokens

TOKENS = SUMS.index("tokens")
# Bytes of an array from which its pages are worth handing from call to call.
LARGE = 1 << 20


class CpuTokens:
    """`TokenKernels` of the CPU."""

    on_host = True
    xp = NumpyArrays

    take_largest = staticmethod(radix_select.take_largest)
    kth_largest = staticmethod(radix_select.kth_largest)

    def refuse(self, tokens: Tokens, good: Bools, describe: Callable[[int], str]) -> None:
        if not good.all():
            raise ValueError(describe(int(good.argmin())))

    def done(self, op: str) -> None:
        """Every error was raised where it was found."""

    def exp(self, tokens: Tokens, x: Float64s) -> Float64s:
        out = np.empty_like(x)
        _core.tokens.exp(x, out, tokens.threads)
        return out

    def lengths(self, tokens: Tokens) -> Int64s:
        sequences = tokens.require_sequences()
        if sequences.width is not None:
            rows = tokens.mask.reshape(sequences.number, sequences.width)
            return np.asarray(np.count_nonzero(rows, axis=1), np.int64)
        return np.bincount(sequences.of_token[tokens.mask], minlength=sequences.number)

    def sums(self, tokens: Tokens, values: Float64s) -> Float64s:
        sequences, mask = tokens.require_sequences(), tokens.mask
        of_token, number = sequences.of_token[mask], sequences.number
        sums = np.bincount(of_token, weights=values[mask], minlength=number)
        # of no tokens at all NumPy makes integers
        return sums.astype(np.float64, copy=False)

    def largest(self, tokens: Tokens, values: Float64s) -> Float64s:
        sequences, mask = tokens.require_sequences(), tokens.mask
        largest = np.zeros(sequences.number)
        np.maximum.at(largest, sequences.of_token[mask], values[mask])
        return largest

    def ranked(self, tokens: Tokens, values: Float64s, quantile: float) -> Float64s:
        sequences, lengths = tokens.require_sequences(), self.lengths(tokens)
        own, ranked = values[tokens.mask], np.zeros(sequences.number)
        own = own[np.lexsort((own, sequences.of_token[tokens.mask]))]
        some = lengths > 0
        places = np.cumsum(lengths) - lengths + (quantile * (lengths - 1)).astype(np.int64)
        ranked[some] = own[places[some]]
        return ranked

    def first_ids(self, tokens: Tokens) -> Int64s:
        sequences, mask = tokens.require_sequences(), tokens.mask
        first = np.full(sequences.number, np.iinfo(np.int64).max)
        np.minimum.at(first, sequences.of_token[mask], tokens.ids[mask])
        return first

    def total(self, tokens: Tokens, values: Float64s) -> Any:
        return values[tokens.mask].sum()

    def count(self, tokens: Tokens, which: Bools | None) -> Any:
        return int(np.count_nonzero(tokens.mask if which is None else which & tokens.mask))

    def exact_means(
        self, tokens: Tokens, first: Floats, second: Floats, reduce: Reduce
    ) -> ExactMeans:
        words = np.empty(_core.tokens.SUM_WORDS, np.int64)
        bad = _core.tokens.value_sums(second, first, tokens.mask, words, tokens.threads)
        if bad >= 0:
            return ExactMeans(0.0, 0.0, 0, (0, 0), bad)
        first_mean, second_mean, number, of_first, of_second = _core.tokens.value_means(
            reduce(words)
        )
        return ExactMeans(first_mean, second_mean, number, (of_first, of_second), -1)

    def repeated_id(self, tokens: Tokens) -> int | None:
        return _core.tokens.repeated_id(tokens.ids, tokens.mask, tokens.threads)

    def covariances(
        self, tokens: Tokens, band: Band, old_logp: Floats | None, most: int
    ) -> tuple[Candidates, int]:
        scores, ids = _room(tokens.logp.size), _room(tokens.logp.size)
        number, bad = _core.tokens.covariance_candidates(
            tokens.logp, tokens.advantages, tokens.mask, old_logp, tokens.ids, band._asdict(), most,
            scores, ids, tokens.threads,
        )  # fmt: skip
        return Candidates(scores[:number], ids[:number], tokens.threads), bad

    def ordered(self, tokens: Tokens, which: Bools, values: Float64s) -> Candidates:
        scores = np.empty(np.count_nonzero(which), np.int64)
        _core.tokens.ordered_scores(values[which], scores, tokens.threads)
        return Candidates(scores, tokens.ids[which], tokens.threads)

    def shuffled(self, candidates: Candidates, seed: int, step: int) -> Candidates:
        scores, ids, threads = candidates
        _core.tokens.random_scores(ids, seed, step, scores, threads)
        return candidates

    def extremes(
        self, tokens: Tokens, which: Bools, values: Float64s, reduce: Reduce
    ) -> tuple[float, float]:
        running = self.ordered(tokens, which, values)
        number = int(reduce(np.array([running.ids.size], np.int64))[0])
        if not number:
            return 0.0, 0.0
        return self.kth_largest(running, number, reduce), self.kth_largest(running, 1, reduce)

    def drawn(self, candidates: Candidates, permute: Callable[[int], Int64s], k: int) -> Int64s:
        return candidates.ids[permute(len(candidates.ids))[:k]]

    def chosen(self, tokens: Tokens, candidates: Candidates, k: int | None) -> Bools:
        ids = candidates.ids
        if k is not None:
            ids = self.take_largest(candidates, k, lambda values: values)
        return self.members(tokens, np.sort(ids))

    def members(self, tokens: Tokens, ids: Int64s) -> Bools:
        out = np.empty(tokens.ids.size, np.bool_)
        _core.tokens.members(tokens.ids, ids, out, tokens.threads)
        return out

    def params(self, fields: dict[str, Any]) -> _core.tokens.LossParams:
        choices = {name: getattr(kind, fields[name]) for name, kind in _CHOICES.items()}
        return _core.tokens.LossParams(**fields | choices)

    def loss(
        self, tokens: Tokens, params: Any, terms: LossTerms, *, entropy: bool, policy: bool
    ) -> LossValues:
        t, logp = terms, tokens.logp
        each, weight = (None, t.weights) if isinstance(t.weights, float) else (t.weights, 0.0)
        g_logp = np.empty_like(logp)
        g_entropy = np.empty_like(logp) if entropy else None
        g_policy = np.empty(logp.size) if policy else None
        sums = np.empty(len(SUMS))
        _core.tokens.token_loss(
            logp=logp,
            old_logp=t.old_logp,
            advantages=tokens.advantages,
            weights=each,
            mask=tokens.mask if each is None else None,
            weight=weight,
            entropy=tokens.entropy,
            kl_logp=t.kl_logp,
            penalty_logp=t.penalty_logp,
            selected=t.selected,
            log_ratio=t.log_ratio,
            factor=t.factor,
            precomputed_loss=t.precomputed_loss,
            precomputed_slope=t.precomputed_slope,
            g_logp=g_logp,
            g_entropy=g_entropy,
            g_policy=g_policy,
            sums=sums,
            mean_advantage=t.mean_advantage,
            mean_logp=t.mean_logp,
            grad_scale=t.grad_scale,
            entropy_coefficient=t.entropy_coefficient,
            kl_coefficient=t.kl_coefficient,
            penalty_coefficient=t.penalty_coefficient,
            log_low=t.log_low,
            log_high=t.log_high,
            params=params,
            threads=tokens.threads,
        )
        return LossValues(sums, g_logp, g_entropy, g_policy)

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Float64s, total: Any, *, wide: bool
    ) -> tuple[Any, Any]:
        # a dozen Python numbers take less time than calls of NumPy
        known = sums.tolist()
        tokens = max(known[TOKENS] if total is None else int(total), 1)
        values = [known[place] / (tokens if per_token else 1) for place, per_token in metrics]
        # of infinite numbers `array` does not warn
        held = np.frombuffer(array("f", values), np.float32)
        with np.errstate(over="ignore"):
            return sums[:1].astype(np.float64 if wide else np.float32).reshape(()), held


_CHOICES = {
    "surrogate": _core.tokens.Surrogate,
    "control": _core.tokens.Control,
    "penalty_estimator": _core.tokens.KlEstimator,
    "kl_estimator": _core.tokens.KlEstimator,
    "kl_weight": _core.tokens.KlWeight,
}


def _room(n: int) -> Int64s:
    """[n], of which few are written, all over it. A large one is memory that an earlier call left
    (csrc/cpu/runtime/memory.h): all its pages are touched, and would be new."""
    if 8 * n < LARGE:
        return np.empty(n, np.int64)
    memory: Any = _core.runtime.Memory(8 * n)
    return np.frombuffer(memory, np.int64, n)


CPU_TOKENS = CpuTokens()
