"""Which keys are among the k largest, after the last digit of a search."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import NUM_WARPS, TOKENS, check, unsigned
from logitless.kernels.tokens.selection.radix import LEVELS, Search, goes_on, state_at
from logitless.kernels.tokens.shared import flag_tokens, token_of


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["k_ptr"])
def radix_take_kernel(
    bins_ptr,  # [levels, 1, BINS] int64
    states_ptr,  # [levels, 1, WORDS] int64
    k_ptr,  # [1] int64 or None
    scores_ptr,  # [n] int64
    ids_ptr,  # [n] int64; -1: none
    taken_ptr,  # [n] bool or None, out
    taken_ids_ptr,  # [n] int64 or None, out: -1 where a key is not
    flag_ptr,  # [1] int64, in and out
    n,
    TOKENS: tl.constexpr,
):
    score, key, needed, same = state_at(bins_ptr, states_ptr, k_ptr, 2 * LEVELS, 0, 1, None, False)
    i, inside = token_of(n, TOKENS)
    scores = tl.load(scores_ptr + i, mask=inside, other=0)
    ids = tl.load(ids_ptr + i, mask=inside, other=-1)
    equal = scores == score
    taken = unsigned(scores) > unsigned(score)
    taken |= equal & (unsigned(~ids) >= unsigned(key))
    taken &= ids >= 0
    if taken_ptr is not None:
        tl.store(taken_ptr + i, taken, mask=inside)
    if taken_ids_ptr is not None:
        tl.store(taken_ids_ptr + i, tl.where(taken, ids, -1), mask=inside)
    # of keys that are equal in all digits not as many as are needed can be told from the others
    if goes_on(needed, same, False):
        flag_tokens(flag_ptr, i, taken & equal & (~ids == key))


def radix_take(search: Search, taken: Tensor, flag: Tensor) -> None:
    """Written to `taken` [n]: whether each is (bool), or its id or -1 (int64). Flagged is a key
    that is another's as well, so that k cannot be told."""
    check(search.scores, torch.bool if taken.dtype == torch.bool else torch.int64, taken=taken)
    which, ids = (taken, None) if taken.dtype == torch.bool else (None, taken)
    n = len(taken)
    if n == 0:
        return
    with device_of(taken):
        radix_take_kernel[(triton.cdiv(n, TOKENS),)](
            search.bins, search.states, search.k, search.scores, search.ids, which, ids, flag, n,
            TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED,
        )  # fmt: skip
