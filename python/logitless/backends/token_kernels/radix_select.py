"""The k largest of many keys on all ranks, from histograms of their digits that the ranks add."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.backends.token_kernels.protocol import Candidates, Reduce

BINS, LEVELS = 256, 16
# Candidates that a histogram counts in the time of its own call.
FEW = 4096


def take_largest(running: Candidates, k: int, reduce: Reduce) -> npt.NDArray[np.int64]:
    """Unordered: the ids on this rank of the k largest keys of all ranks, or all if fewer."""
    words, needed, rest = [0, 0], k, running
    for level in range(LEVELS):
        counts = _histogram(rest, words, level, reduce)
        if level == 0 and counts.sum() <= k:
            return np.asarray(running.ids)
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
    taken = (scores > score) | ((scores == score) & (inverted_ids >= inverted))
    return np.asarray(running.ids[taken])


def kth_largest(running: Candidates, k: int, reduce: Reduce) -> float:
    """The number behind the k-th largest score of all ranks, 1 <= k <= their number."""
    words, needed = [0, 0], k
    for level in range(LEVELS // 2):
        digit, needed = _digit(_histogram(running, words, level, reduce), needed)
        words[0] |= digit << (56 - 8 * level)
        running = _starting(running, words, level)
    return float(score_values(np.array([words[0]], np.uint64).view(np.int64))[0])


def score_values(scores: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The numbers whose order the scores are."""
    bits = scores.view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, bits ^ sign, ~bits).view(np.float64)


def _histogram(running: Candidates, words: list[int], level: int, reduce: Reduce) -> Any:
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


def _digit(counts: npt.NDArray[np.int64], needed: int) -> tuple[int, int]:
    """The bin that holds the needed-th largest key, and how many of that bin are needed."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, needed))
    return counts.size - 1 - place, needed - (int(from_top[place - 1]) if place else 0)
