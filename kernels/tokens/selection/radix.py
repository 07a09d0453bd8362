"""What the kernels of a search share: where the digits before have led to.

The k-th largest of keys (score, ~id) is found by one digit after the other. A launch for each
counts the keys that start with the digits found so far by their next one, and the ranks add up what
they have counted. Each program of the next launch looks up where that leads to, so that the host
need not know it. Several searches among the same keys are one.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.tokens.selection.keys import check
from logitless.kernels.tokens.shared import CLEAR

BITS = tl.constexpr(8)
BINS = tl.constexpr(256)
# Digits of a score; an id has as many.
LEVELS = tl.constexpr(8)
# Of a state: the digits found of the score and of ~id, how many of the keys that start with them
# are among the k largest, and how many there are.
WORDS = tl.constexpr(4)


@dataclass(frozen=True)
class Search:
    """Searches among [n] keys. Each is for the k-th largest, or a quantile."""

    scores: Tensor  # [n] int64
    ids: Tensor  # [n] int64; -1: none
    bins: Tensor  # [levels, searches, BINS] int64
    states: Tensor  # [levels, searches, WORDS] int64
    # [1] int64; None: quantiles say which
    k: Tensor | None = None
    # of all keys, the smallest that at least this share does not exceed; 0: the least
    quantiles: tuple[float, ...] | None = None
    # whether the k-th is asked for, and not what reaches it
    exact: bool = False

    @property
    def searches(self) -> int:
        return self.bins.shape[1]

    @classmethod
    def among(
        cls,
        scores: Tensor,
        ids: Tensor,
        k: Tensor | None = None,
        *,
        quantiles: tuple[float, ...] | None = None,
        exact: bool = False,
    ) -> "Search":
        """A new one. Of an exact search there are scores alone."""
        check(scores, torch.int64, scores=scores, ids=ids)
        levels, searches = (1 if exact else 2) * LEVELS.value, len(quantiles or (k,))
        bins = scores.new_zeros((levels, searches, BINS.value))
        states = scores.new_empty((levels, searches, WORDS.value))
        return cls(scores, ids, bins, states, k, quantiles, exact)


@triton.jit
def _k_of_quantile(total, search, QUANTILES: tl.constexpr):
    share = tl.full((), 0.0, tl.float64)
    for i in tl.static_range(len(QUANTILES)):
        share = tl.where(search == i, tl.full((), QUANTILES[i], tl.float64), share)
    # 2^52 more has the whole number in its last bits: a cast is fused operations on some GPUs
    below = tl.ceil(share * total.to(tl.float64)) + 2.0**52
    below = below.to(tl.int64, bitcast=True) & (2**52 - 1)
    return tl.minimum(total - below + 1, total)


@triton.jit
def shift_of(level):
    return (LEVELS - 1 - level % LEVELS) * BITS


@triton.jit
def state_at(
    bins_ptr, states_ptr, k_ptr, level, search, searches,
    QUANTILES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Before the digit of `level`: the words of a state. It is at its end where all keys that start
    # with these digits are among the k largest: the digits still to come are 0.
    score, key = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    needed, same = tl.full((), 0, tl.int64), tl.full((), CLEAR, tl.int64)
    if k_ptr is not None:
        needed = tl.load(k_ptr)
    if level > 0:
        before = (level - 1) * searches + search
        score = tl.load(states_ptr + before * WORDS)
        key = tl.load(states_ptr + before * WORDS + 1)
        needed = tl.load(states_ptr + before * WORDS + 2)
        same = tl.load(states_ptr + before * WORDS + 3)
        if goes_on(needed, same, EXACT):
            o = tl.arange(0, BINS)
            # from the largest digit on: place o has the digit o ^ (BINS - 1)
            counts = tl.load(bins_ptr + before * BINS + (o ^ (BINS - 1)))
            through = tl.cumsum(counts, 0)
            if QUANTILES is not None:
                if level == 1:
                    needed = _k_of_quantile(tl.sum(counts, 0), search, QUANTILES)
            place = tl.minimum(tl.sum((through < needed).to(tl.int32), 0), BINS - 1)
            needed -= tl.sum(tl.where(o < place, counts, 0), 0)
            same = tl.sum(tl.where(o == place, counts, 0), 0)
            digit = tl.cast(place ^ (BINS - 1), tl.int64) << shift_of(level - 1)
            score = tl.where(level <= LEVELS, score | digit, score)
            key = tl.where(level > LEVELS, key | digit, key)
    return score, key, needed, same


@triton.jit
def goes_on(needed, same, EXACT: tl.constexpr):
    return EXACT | (same > needed)
