"""Those ids that are not negative, side by side in any order, and their number."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import check

TOKENS = 4096
NUM_WARPS = 8


@triton.jit
def gathered_of(found_ptr, n):
    # Of gathered ids, whatever the memory says.
    return tl.minimum(tl.maximum(tl.load(found_ptr), 0), n)


@triton.jit(do_not_specialize=["n"])
def gather_ids_kernel(
    ids_ptr,  # [n] int64
    room_ptr,  # [n] int64, out
    found_ptr,  # [1] int64, in and out
    n: tl.int64,
    TOKENS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    ids = tl.load(ids_ptr + i, mask=i < n, other=-1)
    one = (ids >= 0).to(tl.int32)
    total = tl.cast(tl.sum(one, 0), tl.int64)
    if total > 0:
        start = tl.atomic_add(found_ptr, total, sem="relaxed")
        place = start + tl.cumsum(one, 0) - 1
        tl.store(room_ptr + place, ids, mask=(ids >= 0) & (place >= 0) & (place < n))


def gather_ids(ids: Tensor, room: Tensor, found: Tensor) -> None:
    """Written to `room` [n]; their number is added to `found` [1]."""
    check(ids, torch.int64, ids=ids, room=room)
    n = len(ids)
    if n == 0:
        return
    with device_of(ids):
        gather_ids_kernel[(triton.cdiv(n, TOKENS),)](
            ids, room, found, n, TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED
        )
