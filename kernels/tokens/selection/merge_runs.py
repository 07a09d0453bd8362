"""Sorted runs of ids become runs that are WAYS times as long; the last ones become the array."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.gather_ids import gathered_of
from logitless.kernels.tokens.selection.keys import TOKENS, check

WAYS = 16
NUM_WARPS = 4


@triton.jit
def _before(ids_ptr, begin, end, ids, or_equal):
    # How many of the sorted ids [begin, end) are below each, or not above it.
    low, high = begin + 0 * ids, end + 0 * ids
    left = end - begin
    while left > 0:
        middle = (low + high) // 2
        within = low < high
        other = tl.load(ids_ptr + middle, mask=within, other=0)
        passes = (other < ids) | (or_equal & (other == ids))
        low = tl.where(within & passes, middle + 1, low)
        high = tl.where(within & (passes == 0), middle, high)
        left = left // 2
    return low - begin


@triton.jit(do_not_specialize=["n", "width"])
def merge_runs_kernel(
    from_ptr,  # [n] int64
    to_ptr,  # [n] int64, out
    found_ptr,  # [1] int64
    n: tl.int64,
    width: tl.int64,
    LAST: tl.constexpr,
    WAYS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    # An id's place is how many of each run are before it, and equal ones are as their runs are.
    # Those of the last merge stand behind a -1 for each token that is none.
    start = tl.program_id(0).to(tl.int64) * TOKENS
    i = start + tl.arange(0, TOKENS)
    found = gathered_of(found_ptr, n)
    first = tl.full((), 0, tl.int64)
    if LAST:
        first = n - found
        tl.store(to_ptr + i, tl.full((TOKENS,), -1, tl.int64), mask=i < first)
    if start < found:
        inside = i < found
        ids = tl.load(from_ptr + i, mask=inside, other=0)
        # a program's ids are all of one run
        own = start // width * width
        begin = start // (width * WAYS) * (width * WAYS)
        last = tl.minimum(begin + width * WAYS, found)
        place = begin + i - own
        while begin < last:
            if begin != own:
                end = tl.minimum(begin + width, found)
                place += _before(from_ptr, begin, end, ids, begin < own)
            begin += width
        tl.store(to_ptr + first + place, ids, mask=inside)


def merge_runs(
    ids: Tensor,  # [n] int64
    out: Tensor,  # [n] int64, written
    found: Tensor,  # [1] int64
    *,
    width: int,  # of a run
    last: bool,
) -> None:
    check(ids, torch.int64, ids=ids, out=out)
    n = len(ids)
    if n == 0:
        return
    with device_of(ids):
        merge_runs_kernel[(triton.cdiv(n, TOKENS),)](
            ids, out, found, n, width, LAST=last, WAYS=WAYS, TOKENS=TOKENS, num_warps=NUM_WARPS,
            **UNFUSED,
        )  # fmt: skip
