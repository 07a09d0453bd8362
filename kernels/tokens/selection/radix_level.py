"""A search goes on by one digit: keys that start with the digits found so far, counted by it."""

import triton
import triton.language as tl

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import unsigned
from logitless.kernels.tokens.selection.radix import (
    BINS,
    BITS,
    LEVELS,
    WORDS,
    Search,
    goes_on,
    shift_of,
    state_at,
)
from logitless.kernels.tokens.shared import token_of

TOKENS = 4096
NUM_WARPS = 8


@triton.jit(do_not_specialize=["n", "level"], do_not_specialize_on_alignment=["k_ptr"])
def radix_level_kernel(
    bins_ptr,  # [levels, searches, BINS] int64, in and out
    states_ptr,  # [levels, searches, WORDS] int64, in and out
    k_ptr,  # [1] int64 or None
    scores_ptr,  # [n] int64
    ids_ptr,  # [n] int64; -1: none
    n,
    level: tl.int64,
    QUANTILES: tl.constexpr,
    EXACT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    search, searches = tl.program_id(1), tl.num_programs(1)
    score, key, needed, same = state_at(
        bins_ptr, states_ptr, k_ptr, level, search, searches, QUANTILES, EXACT
    )
    at = level * searches + search
    if tl.program_id(0) == 0:
        tl.store(states_ptr + at * WORDS, score)
        tl.store(states_ptr + at * WORDS + 1, key)
        tl.store(states_ptr + at * WORDS + 2, needed)
        tl.store(states_ptr + at * WORDS + 3, same)
    if goes_on(needed, same, EXACT):
        i, inside = token_of(n, TOKENS)
        scores = tl.load(scores_ptr + i, mask=inside, other=0)
        ids = tl.load(ids_ptr + i, mask=inside, other=-1)
        of_id = level >= LEVELS
        word, found = tl.where(of_id, ~ids, scores), tl.where(of_id, key, score)
        shift = shift_of(level)
        starts = unsigned(word ^ found) >> shift >> BITS == 0
        starts &= (ids >= 0) & ((level < LEVELS) | (scores == score))
        digit = ((word >> shift) & (BINS - 1)).to(tl.int32)
        counts = tl.histogram(digit, BINS, mask=starts)
        bin_ptr = bins_ptr + at * BINS + tl.arange(0, BINS)
        tl.atomic_add(bin_ptr, tl.cast(counts, tl.int64), mask=counts > 0, sem="relaxed")


def radix_level(search: Search, level: int) -> None:
    """Afterwards the ranks add up bins[level]."""
    n = len(search.scores)
    with device_of(search.scores):
        # where there are no tokens a search goes on by those of other ranks
        radix_level_kernel[(max(triton.cdiv(n, TOKENS), 1), search.searches)](
            search.bins, search.states, search.k, search.scores, search.ids, n, level,
            QUANTILES=search.quantiles, EXACT=search.exact, TOKENS=TOKENS, num_warps=NUM_WARPS,
            **UNFUSED,
        )  # fmt: skip
